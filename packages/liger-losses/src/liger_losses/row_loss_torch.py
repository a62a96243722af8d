"""The loss of rows of logits and its gradient in PyTorch, with the formulas and names of
`row_loss`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rows", "Settings", "row_loss_bwd_torch", "row_loss_fwd_torch"]


class Settings(NamedTuple):
    """The numbers that define the loss of a row."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0


class Rows(NamedTuple):
    """What the forward leaves behind, each [M] in fp32 (fp64 for fp64 logits)."""

    loss: Tensor
    lse: Tensor
    rest: Tensor


def _z_torch(x: Tensor, settings: Settings) -> Tensor:
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    z = z if settings.logit_scale == 1.0 else z * settings.logit_scale
    return z if settings.softcap is None else settings.softcap * torch.tanh(z / settings.softcap)


def _statistics_torch(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """lse, and 1 - p of the class `index` without the rounding of a large lse."""
    top = z.amax(-1, keepdim=True)
    # a row of nothing but -inf sums to zero; +inf makes its row NaN, as in torch
    top = top.masked_fill(top == float("-inf"), 0.0)
    parts = (z - top).exp_()
    own = parts.gather(1, index)[:, 0]
    others = parts.scatter_(1, index, 0.0).sum(-1)
    return top[:, 0] + torch.log(own + others), others / (own + others)


def row_loss_fwd_torch(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    settings: Settings,
    dx: Tensor | None,
    g: Tensor | None,
) -> Rows:
    V, z = x.shape[-1], _z_torch(x, settings)
    valid, in_range = target != settings.ignore_index, (target >= 0) & (target < V)
    index = target.where(in_range, 0)[:, None]
    z_t = z.gather(1, index)[:, 0].masked_fill(~in_range, float("nan"))
    lse, rest = _statistics_torch(z, index)
    lse = lse.where(in_range, float("nan"))

    smooth = settings.label_smoothing
    w_t = 1.0 if weight is None else weight[index[:, 0]].to(z.dtype)
    loss = (1.0 - smooth) * w_t * (lse - z_t)
    if smooth:
        w_z = z.mean(-1) if weight is None else torch.mv(z, weight.to(z.dtype)) / V
        loss = loss + smooth * (lse * (1.0 if weight is None else weight.mean(dtype=z.dtype)) - w_z)
    loss = loss + settings.z_loss * lse.square()
    rows = Rows(*(torch.where(valid, t, 0.0) for t in (loss, lse, rest)))
    if dx is not None and g is not None:
        row_loss_bwd_torch(x, target, weight, settings, rows, dx, g)
    return rows


def row_loss_bwd_torch(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    settings: Settings,
    rows: Rows,
    dx: Tensor,
    g: Tensor,
) -> None:
    V, z, smooth = x.shape[-1], _z_torch(x, settings), settings.label_smoothing
    index = target.where((target >= 0) & (target < V), 0)
    w_t = torch.ones_like(rows.lse) if weight is None else weight[index].to(z.dtype)
    mean_weight = 1.0 if weight is None else weight.mean(dtype=z.dtype)
    k = (1.0 - smooth) * w_t + smooth * mean_weight + 2.0 * settings.z_loss * rows.lse
    own = k - (1.0 - smooth) * w_t - smooth / V * w_t - rows.rest * k

    slope = None if settings.softcap is None else 1.0 - (z / settings.softcap).square()
    dz = torch.exp(z - rows.lse[:, None]).mul_(k[:, None])
    if smooth:
        dz -= smooth / V * (1.0 if weight is None else weight.to(z.dtype))
    dz.scatter_(1, index[:, None], own[:, None])
    if slope is not None:
        dz *= slope
    dz *= (g * settings.logit_scale).expand(dz.shape[0])[:, None]
    dx.copy_(dz.masked_fill_((target == settings.ignore_index)[:, None], 0.0))
