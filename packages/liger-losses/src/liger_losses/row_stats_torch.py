"""Statistics of rows of logits and their gradient in PyTorch, with the formulas and names of
`row_stats`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Logits", "Stats", "row_stats_bwd_torch", "row_stats_fwd_torch"]


class Logits(NamedTuple):
    """The numbers that turn x into logits z, and the label of rows that do not count."""

    ignore_index: int = -100
    softcap: float | None = None
    logit_scale: float = 1.0


class Stats(NamedTuple):
    """Statistics of each row, [M] in fp32 (fp64 for fp64 logits), argmax int64; None where not
    asked for. Also their gradients.
    """

    log_prob: Tensor | None = None
    lse: Tensor | None = None
    rest: Tensor | None = None
    entropy: Tensor | None = None
    mean: Tensor | None = None
    squares: Tensor | None = None
    argmax: Tensor | None = None


def _stats_z_torch(x: Tensor, logits: Logits) -> Tensor:
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    z = z if logits.logit_scale == 1.0 else z * logits.logit_scale
    return z if logits.softcap is None else logits.softcap * torch.tanh(z / logits.softcap)


def row_stats_fwd_torch(x: Tensor, target: Tensor, want: tuple[bool, ...], logits: Logits) -> Stats:
    V, z = x.shape[-1], _stats_z_torch(x, logits)
    counts, in_range = target != logits.ignore_index, (target >= 0) & (target < V)
    index = target.where(in_range, 0)[:, None]
    top = z.amax(-1, keepdim=True)
    # a row of nothing but -inf sums to zero
    top = top.masked_fill(top == float("-inf"), 0.0)
    z0 = z - top
    e = z0.exp()
    own = e.gather(1, index)[:, 0].masked_fill(~in_range, float("nan"))
    others = e.scatter(1, index, 0.0).sum(-1)
    total = others + own
    log_total = total.log()
    log_prob = z0.gather(1, index)[:, 0] - log_total
    entropy, mean, squares, argmax = want

    def shown(t: Tensor, absent: float = 0.0) -> Tensor:
        return torch.where(counts, t, absent)

    return Stats(
        shown(log_prob),
        shown(top[:, 0] + log_total),
        shown(others / total),
        shown(log_total - (e * z0).masked_fill(e == 0, 0.0).sum(-1) / total) if entropy else None,
        shown(z.mean(-1)) if mean else None,
        shown(e.square().sum(-1) / total.square()) if squares else None,
        shown(z.argmax(-1), -1) if argmax else None,
    )


def row_stats_bwd_torch(
    x: Tensor, target: Tensor, stats: Stats, gs: Stats, logits: Logits, dx: Tensor
) -> None:
    assert stats.lse is not None
    assert stats.rest is not None
    V, z, lse = x.shape[-1], _stats_z_torch(x, logits), stats.lse[:, None]
    in_range = (target >= 0) & (target < V)
    index = target.where(in_range, 0)[:, None]
    p = torch.exp(z - lse)
    k = torch.zeros_like(lse) if gs.lse is None else gs.lse[:, None]
    if gs.entropy is not None and stats.entropy is not None:
        log_p = (z - lse).masked_fill(p == 0, 0.0)
        k = k - gs.entropy[:, None] * (log_p + stats.entropy[:, None])
    if gs.squares is not None and stats.squares is not None:
        k = k + 2.0 * gs.squares[:, None] * (p - stats.squares[:, None])
    dz = p * k
    if gs.log_prob is not None:
        part = -gs.log_prob[:, None] * p
        own = (gs.log_prob * stats.rest).where(in_range, part[:, 0])
        dz = dz + part.scatter(1, index, own[:, None])
    if gs.mean is not None:
        dz = dz + gs.mean[:, None] / V
    if logits.softcap is not None:
        dz = dz * (1.0 - (z / logits.softcap).square())
    dz = dz * logits.logit_scale
    dx.copy_(dz.masked_fill_((target == logits.ignore_index)[:, None], 0.0))
