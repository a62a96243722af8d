"""The divergences of `functional`: those of `liger_losses` under other names and orders."""

from typing import Any

import liger_losses
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "liger_fused_ce_tvd",
    "liger_fused_linear_jsd",
    "liger_fused_linear_kl_div",
    "liger_jsd",
    "liger_kl_div",
    "liger_tvd",
]


def liger_jsd(
    input: Tensor, target: Tensor, shift_labels: Tensor | None = None, beta: float = 0.5,
    ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    """`liger_losses.jsd` of log-probabilities, mean over the rows that count."""
    _check_labels(shift_labels, input)
    return liger_losses.jsd(
        input, target.detach(), beta=beta, labels=shift_labels, ignore_index=ignore_index
    )


def liger_fused_linear_jsd(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor,
    shift_labels: Tensor | None = None, jsd_beta: float = 0.5, ignore_index: int = -100,
    temperature: float = 1.0, accum_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """`liger_losses.linear_jsd`, mean over the tokens that count."""
    _check_labels(shift_labels, student_input)
    return liger_losses.linear_jsd(
        student_input, student_weight, teacher_input.detach(), teacher_weight.detach(),
        beta=jsd_beta, labels=shift_labels, ignore_index=ignore_index, temperature=temperature,
    )  # fmt: skip


def liger_fused_linear_kl_div(
    student_input: Tensor, student_weight: Tensor, target: Tensor,
    shift_labels: Tensor | None = None, reduction: str = "batchmean", ignore_index: int = -100,
    temperature: float = 1.0, eps: float = 1e-10, accum_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """`liger_losses.linear_kl_div` from probabilities [M, V] of a teacher; reductions as in torch.

    A class of probability 0 adds 0 whatever `eps`.
    """
    if reduction not in ("batchmean", "mean", "sum"):
        raise ValueError(f"reduction must be batchmean, mean or sum: {reduction!r}")
    assert temperature != 0, "temperature cannot be 0"
    _check_labels(shift_labels, student_input)
    M, V = target.shape
    loss = liger_losses.linear_kl_div(
        student_input, student_weight, temperature=temperature, labels=shift_labels,
        ignore_index=ignore_index, reduction="sum" if reduction == "sum" else "mean",
        target_log_probs=target.detach().float().log(),
        target_ids=torch.arange(V, device=target.device).expand(M, V),
    )  # fmt: skip
    return loss / V if reduction == "mean" else loss


def liger_kl_div(
    input: Tensor, target: Tensor, size_average: Any = True, reduce: Any = True,
    reduction: str = "mean", log_target: bool = False, eps: float = 1e-10,
) -> Tensor:  # fmt: skip
    """`liger_losses.kl_div`. A class of probability 0 adds 0 whatever `eps`."""
    return liger_losses.kl_div(input, target.detach(), reduction=reduction, log_target=log_target)


def liger_tvd(
    input: Tensor, target: Tensor, shift_labels: Tensor | None = None, reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    """Total variation distance of probabilities [M, V], half of torch's L1 loss; `liger_losses.tvd`
    is that of log-probabilities and logits.
    """
    if reduction not in ("batchmean", "mean", "sum", "none"):
        raise ValueError(f"reduction must be batchmean, mean, sum or none: {reduction!r}")
    _check_labels(shift_labels, input)
    each = F.l1_loss(input, target.detach(), reduction="none") / 2
    counts = torch.ones_like(each[:, 0], dtype=torch.bool)
    if shift_labels is not None:
        counts = shift_labels != ignore_index
        each = each.where(counts[:, None], 0.0)
    if reduction == "none":
        return each
    rows = each.sum(-1, dtype=torch.promote_types(each.dtype, torch.float32))
    if reduction == "sum":
        return rows.sum()
    mean = rows.sum() / counts.sum().clamp(min=1)
    return mean / input.shape[-1] if reduction == "mean" else mean


def liger_fused_ce_tvd(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """(cross entropy, total variation distance from the teacher) of each token, [M] and [M]."""
    loss = liger_losses.cross_entropy(
        student_logits, target, ignore_index=ignore_index, reduction="none"
    )
    distance = liger_losses.tvd(
        student_logits, teacher_logits.detach(), from_logits=True, reduction="none",
        labels=target, ignore_index=ignore_index,
    )  # fmt: skip
    return loss, distance


def _check_labels(shift_labels: Tensor | None, rows: Tensor) -> None:
    assert shift_labels is None or shift_labels.shape == rows.shape[:1], (
        f"shift_labels must be [{rows.shape[0]}]: {tuple(shift_labels.shape)}"
    )
