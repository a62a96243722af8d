"""The losses once more, by their formula in fp64, for the tests beside this file."""

import torch
from torch import Tensor


def row_losses(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Loss and weight [M] of each row of logits [M, V].

    (1 - s) w_t (lse - z_t) + s / V sum_j w_j (lse - z_j) + z_loss lse^2
    """
    z = logits.double() * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    w = torch.ones_like(z[0]) if weight is None else weight.double()
    counts = (target != ignore_index).double()
    label = torch.where(target == ignore_index, 0, target).long()
    lse = z.logsumexp(-1)
    loss = (1 - label_smoothing) * w[label] * (lse - z[torch.arange(len(z)), label])
    if label_smoothing:
        loss = loss + label_smoothing * (w * (lse[:, None] - z)).mean(-1)
    return torch.where(counts > 0, loss + z_loss * lse**2, 0.0), counts * w[label]


def reduced(rows: tuple[Tensor, Tensor], reduction: str) -> Tensor:
    loss, counts = rows
    if reduction == "none":
        return loss
    total = loss.sum()
    return (
        total if reduction == "sum" else total / torch.where(counts.sum() == 0, 1.0, counts.sum())
    )


def close(actual: Tensor, truth: Tensor, limit: float = 1e-5) -> None:
    """Within `limit` of the largest element."""
    assert actual.shape == truth.shape
    error = (actual.double() - truth).abs().max().item() if truth.numel() else 0.0
    scale = max(truth.abs().max().item(), 1e-30) if truth.numel() else 1.0
    assert error <= limit * scale, f"error {error:.3g} of {scale:.3g}"
