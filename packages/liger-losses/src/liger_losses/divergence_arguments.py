"""What the divergences check in their arguments and make of them."""

import math

import torch
from torch import Tensor

from .arguments import check_frozen, check_plain, mean_scale
from .divergence_torch import Divergence

__all__ = [
    "check_beta", "check_divergence", "check_heads", "check_labels",
    "check_options", "check_student", "check_top_k", "divergence_scale",
]  # fmt: skip


def divergence_scale(
    input: Tensor, target: Tensor, labels: Tensor | None, ignore_index: int, reduction: str,
    normalizer: float | Tensor | None,
) -> Tensor:  # fmt: skip
    """What the sum of the losses of the rows of input [..., V] is multiplied by, a 0-d tensor.

    `reduction` is "sum", "row mean", or torch's "mean" over elements or "batchmean".
    """
    dtype = torch.promote_types(torch.promote_types(input.dtype, target.dtype), torch.float32)
    if reduction == "sum":
        return torch.ones((), dtype=dtype, device=input.device)
    classes = input.shape[-1] if reduction == "mean" else 1
    if normalizer is None and labels is not None:
        return mean_scale(labels, None, ignore_index, None, dtype) / classes
    if normalizer is None:
        rows = input.shape[0] if reduction == "batchmean" else math.prod(input.shape[:-1])
        normalizer = max(rows, 1) * classes
    return mean_scale(input, None, ignore_index, normalizer, dtype)


def check_options(
    name: str, how: Divergence, reduction: str, reductions: tuple[str, ...],
    normalizer: float | Tensor | None,
) -> None:  # fmt: skip
    if reduction not in reductions:
        listed = ", ".join(map(repr, reductions[:-1]))
        raise ValueError(
            f"{name}: reduction must be {listed} or {reductions[-1]!r}, not {reduction!r}"
        )
    if not 0.0 < how.temperature < math.inf:
        raise ValueError(f"{name}: temperature must be positive, got {how.temperature}")
    if how.temperature != 1.0 and not how.logits:
        raise ValueError(
            f"{name}: a temperature of {how.temperature} needs logits: from_logits=True"
        )
    if normalizer is not None and reduction not in ("mean", "batchmean"):
        raise ValueError(
            f"{name}: normalizer is what a mean divides by; reduction is {reduction!r}"
        )


def check_labels(name: str, labels: Tensor | None, input: Tensor) -> None:
    """Raises unless labels are None or one integer for each row of input [..., N]."""
    if labels is None:
        return
    if labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: labels {labels.dtype} must be int64 or int32")
    if labels.shape != input.shape[:-1]:
        raise ValueError(
            f"{name}: labels {tuple(labels.shape)} must have a label for each row of "
            f"{tuple(input.shape)}"
        )
    if labels.device != input.device:
        raise ValueError(f"{name}: input is on {input.device}, labels on {labels.device}")


def check_divergence(
    name: str, input: Tensor, target: Tensor, labels: Tensor | None, how: Divergence,
    reduction: str, reductions: tuple[str, ...], normalizer: float | Tensor | None,
) -> None:  # fmt: skip
    """Raises for what `kl_div`, `jsd` and `tvd` have in common."""
    if input.ndim < 1 or input.shape != target.shape or not input.shape[-1]:
        raise ValueError(
            f"{name}: input {tuple(input.shape)} and target {tuple(target.shape)} must both be "
            "[..., V], V > 0"
        )
    for what, tensor in (("input", input), ("target", target)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: {what} {tensor.dtype} must be floating point")
    if target.device != input.device:
        raise ValueError(f"{name}: input is on {input.device}, target on {target.device}")
    check_frozen(name, target=target)
    check_labels(name, labels, input)
    check_options(name, how, reduction, reductions, normalizer)
    if reduction == "batchmean" and labels is not None and input.ndim != 2:
        raise ValueError(
            f"{name}: batchmean with labels needs input [M, V], got {tuple(input.shape)}"
        )


def check_beta(name: str, beta: float) -> str:
    """The kind of the JSD of `beta`."""
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"{name}: beta must be in [0, 1], got {beta}")
    return {0.0: "kl", 1.0: "reverse_kl"}.get(beta, "jsd")


def check_student(name: str, x: Tensor, W: Tensor, b: Tensor | None, what: str = "student") -> None:
    """Raises unless hidden states, weight and bias of a head fit each other."""
    check_plain(name, x, W, b)
    if x.ndim < 1 or W.ndim != 2 or x.shape[-1] != W.shape[1] or not W.shape[0]:
        raise ValueError(
            f"{name}: {what}_input and {what}_weight must be [..., H] and [V, H], V > 0, got "
            f"{tuple(x.shape)} and {tuple(W.shape)}"
        )
    if b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"{name}: {what}_bias {tuple(b.shape)} must be [V] with V = {W.shape[0]}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: {what}_input {x.dtype} must be floating point")
    for part, t in (("weight", W), ("bias", b)):
        if t is not None and (t.device != x.device or t.dtype != x.dtype):
            kind = ValueError if t.device != x.device else TypeError
            raise kind(
                f"{name}: {what}_input is {x.dtype} on {x.device}, {what}_{part} {t.dtype} on "
                f"{t.device}"
            )


def check_heads(
    name: str, x: Tensor, W: Tensor, b: Tensor | None, tx: Tensor, tW: Tensor, tb: Tensor | None,
    labels: Tensor | None,
) -> None:  # fmt: skip
    """Raises unless student and teacher have the same tokens and classes."""
    check_student(name, x, W, b)
    check_student(name, tx, tW, tb, "teacher")
    if x.shape[:-1] != tx.shape[:-1] or len(W) != len(tW):
        raise ValueError(
            f"{name}: student and teacher must have the same tokens and V, got "
            f"{tuple(x.shape)} and {tuple(tx.shape)}, V {len(W)} and {len(tW)}"
        )
    if x.device != tx.device:
        raise ValueError(f"{name}: the student is on {x.device}, the teacher on {tx.device}")
    check_frozen(name, teacher_input=tx, teacher_weight=tW, teacher_bias=tb)
    check_labels(name, labels, x)


def check_top_k(name: str, x: Tensor, log_probs: Tensor, ids: Tensor) -> None:
    """Raises unless both are [..., k] for hidden states x [..., H]."""
    if log_probs.shape != ids.shape or ids.shape[:-1] != x.shape[:-1] or not ids.shape[-1]:
        raise ValueError(
            f"{name}: target_log_probs and target_ids must be [..., k], k > 0, for tokens "
            f"{tuple(x.shape[:-1])}, got {tuple(log_probs.shape)} and {tuple(ids.shape)}"
        )
    if not log_probs.is_floating_point():
        raise TypeError(f"{name}: target_log_probs {log_probs.dtype} must be floating point")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: target_ids {ids.dtype} must be int64 or int32")
    for what, t in (("target_log_probs", log_probs), ("target_ids", ids)):
        if t.device != x.device:
            raise ValueError(f"{name}: student_input is on {x.device}, {what} on {t.device}")
    check_frozen(name, target_log_probs=log_probs)
