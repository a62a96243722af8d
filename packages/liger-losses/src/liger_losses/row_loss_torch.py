"""The loss of rows of logits and its gradient in PyTorch, with the formulas and names of
`row_loss`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rows", "Settings", "empty_rows", "row_loss_bwd_torch", "row_loss_fwd_torch"]


class Settings(NamedTuple):
    """The numbers that define the loss of a row."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0


class Rows(NamedTuple):
    """What the forward leaves behind, each [M] in fp32 (fp64 for fp64 logits), argmax int64; the
    last two only where asked for.
    """

    loss: Tensor
    lse: Tensor
    rest: Tensor
    log_prob: Tensor | None = None
    argmax: Tensor | None = None


def empty_rows(M: int, x: Tensor, metrics: bool, by_probability: bool) -> Rows:
    """Room for M rows in the precision that x is summed in."""
    acc = torch.promote_types(x.dtype, torch.float32)
    loss, lse, rest = (torch.empty(M, dtype=acc, device=x.device) for _ in range(3))
    log_prob = torch.empty_like(loss) if metrics or by_probability else None
    argmax = torch.empty(M, dtype=torch.int64, device=x.device) if metrics else None
    return Rows(loss, lse, rest, log_prob, argmax)


def _z_torch(x: Tensor, settings: Settings) -> Tensor:
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    z = z if settings.logit_scale == 1.0 else z * settings.logit_scale
    return z if settings.softcap is None else settings.softcap * torch.tanh(z / settings.softcap)


def _statistics_torch(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """lse; log p of the class `index`; and 1 - p without the rounding of a large lse."""
    top = z.amax(-1, keepdim=True)
    # a row of nothing but -inf sums to zero; +inf makes its row NaN, as in torch
    top = top.masked_fill(top == float("-inf"), 0.0)
    parts = z - top
    log_own = parts.gather(1, index)[:, 0]
    own = log_own.exp()
    others = parts.exp_().scatter_(1, index, 0.0).sum(-1)
    log_total = torch.log(own + others)
    return top[:, 0] + log_total, log_own - log_total, others / (own + others)


def row_loss_fwd_torch(
    x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings, dx: Tensor | None,
    g: Tensor | None, metrics: bool, by_probability: bool,
) -> Rows:  # fmt: skip
    V, z = x.shape[-1], _z_torch(x, settings)
    valid, in_range = target != settings.ignore_index, (target >= 0) & (target < V)
    index = target.where(in_range, 0)[:, None]
    lse, log_prob, rest = (t.where(in_range, float("nan")) for t in _statistics_torch(z, index))

    smooth = settings.label_smoothing
    w_t = 1.0 if weight is None else weight[index[:, 0]].to(z.dtype)
    # a difference, so that nothing costs 0 and not -0
    loss = (1.0 - smooth) * w_t * (0.0 - log_prob)
    if smooth:
        w_z = z.mean(-1) if weight is None else torch.mv(z, weight.to(z.dtype)) / V
        loss = loss + smooth * (lse * (1.0 if weight is None else weight.mean(dtype=z.dtype)) - w_z)
    loss = loss + settings.z_loss * lse.square()
    loss, lse, rest, log_prob = (torch.where(valid, t, 0.0) for t in (loss, lse, rest, log_prob))
    argmax = torch.where(valid, z.argmax(-1), -1) if metrics else None
    rows = Rows(loss, lse, rest, log_prob if metrics or by_probability else None, argmax)
    if dx is not None and g is not None:
        g = g * log_prob.exp() if by_probability else g
        row_loss_bwd_torch(x, target, weight, settings, rows, dx, g)
    return rows


def row_loss_bwd_torch(
    x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings, rows: Rows, dx: Tensor,
    g: Tensor,
) -> None:  # fmt: skip
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
