"""Log-probabilities of labels and other statistics of rows of logits that exist.

One reading of the logits in the forward, one reading and one writing in the backward, whatever the
upstream gradients of the statistics are; the kernels and formulas are those of `row_stats`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from liger_core.autograd import once_differentiable
from torch import Tensor

from .arguments import check_range, check_target
from .row_stats import Logits, Stats, row_stats_bwd, row_stats_fwd

__all__ = ["LogProbs", "log_probs", "log_probs_ref", "named", "wanted"]

CHOICES = ("entropy", "mean_logits", "squares", "argmax")


class LogProbs(NamedTuple):
    """Statistics of each token's logits z, in the shape of the targets; fp32 (fp64 for float64).

    Args:
        log_probs: z_t - lse of the target t.
        lse: log(sum_j exp(z_j)).
        entropy: -sum_j p_j log(p_j) of p = softmax(z), or None where not asked for.
        mean_logits: mean of z, likewise.
        squares: sum_j p_j^2, likewise.
        argmax: the first class of the largest z, int64, without gradient, likewise.

    Tokens that do not count have zeros, and -1 as argmax.
    """

    log_probs: Tensor
    lse: Tensor
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    squares: Tensor | None = None
    argmax: Tensor | None = None


def log_probs_ref(
    input: Tensor, target: Tensor, *, statistics: Sequence[str] = (), ignore_index: int = -100,
    softcap: float | None = None, logit_scale: float = 1.0,
) -> LogProbs:  # fmt: skip
    z = input.to(torch.promote_types(input.dtype, torch.float32)) * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    counts = target != ignore_index
    log_p, p = z.log_softmax(-1), z.softmax(-1)
    found = {
        "entropy": -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1),
        "mean_logits": z.mean(-1),
        "squares": p.square().sum(-1),
    }
    shown = {name: found[name].where(counts, 0.0) for name in statistics if name in found}
    if "argmax" in statistics:
        shown["argmax"] = z.argmax(-1).where(counts, -1)
    label = log_p.gather(-1, target.where(counts, 0).long()[..., None])[..., 0]
    return LogProbs(label.where(counts, 0.0), z.logsumexp(-1).where(counts, 0.0), **shown)


class LogProbsFunction(torch.autograd.Function):
    """x [M, V], target [M] -> the fields of `Stats`, [0] where not asked for."""

    @staticmethod
    def forward(ctx, x, target, want, logits):
        stats = row_stats_fwd(x, target, want, logits)
        shown = [x.new_empty(0) if t is None else t for t in stats]
        ctx.save_for_backward(x, target, stats.lse, stats.rest, stats.entropy, stats.squares)
        ctx.logits = logits
        ctx.mark_non_differentiable(shown[2], shown[6])
        return tuple(shown)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gs):
        x, target, lse, rest, entropy, squares = ctx.saved_tensors
        stats = Stats(lse=lse, rest=rest, entropy=entropy, squares=squares)
        given = [g.contiguous() if g is not None and g.numel() else None for g in gs]
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        row_stats_bwd(x, target, stats, Stats(*given), ctx.logits, dx)
        return dx, None, None, None


def log_probs(
    input: Tensor, target: Tensor, *, statistics: Sequence[str] = (), ignore_index: int = -100,
    softcap: float | None = None, logit_scale: float = 1.0,
) -> LogProbs:  # fmt: skip
    """Log-probability of each target, and further statistics of its logits; differentiable.

    log_probs = z_t - log(sum_j exp(z_j)) with z = softcap * tanh(logit_scale * x / softcap), or
    logit_scale * x. Gradients of all statistics flow into the logits in one pass.

    Args:
        input: logits x, [..., V]; float16, bfloat16, float32 or float64.
        target: class indices, [...], int64 or int32.
        statistics: which of "entropy", "mean_logits", "squares", "argmax" are wanted besides.
        ignore_index: targets that do not count; their logits are not read, get a zero gradient and
            have zeros for statistics.
        softcap: bound of the logits, or None.
        logit_scale: factor of the logits, 1 / temperature, before the softcap.

    Returns:
        `LogProbs`, each field in the shape of `target`, fp32 (fp64 for float64). A target out of
        range gives NaN.

    Peak memory: the gradient of the logits, and 4 bytes a token and statistic.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; an unknown statistic.
        TypeError: dtypes that do not fit.

    Source: derivatives in `row_stats`.
    """
    name = "log_probs"
    if input.ndim < 1 or target.shape != input.shape[:-1] or input.shape[-1] == 0:
        raise ValueError(
            f"{name}: input {tuple(input.shape)} and target {tuple(target.shape)} must be "
            "[..., V] and [...], V > 0"
        )
    if not input.is_floating_point():
        raise TypeError(f"{name}: input {input.dtype} must be floating point")
    check_target(name, target, softcap, logit_scale, input.device)
    check_range(name, target, input.shape[-1], ignore_index)
    want = wanted(name, statistics)
    x = input.reshape(-1, input.shape[-1])
    x = x if x.stride(-1) == 1 else x.contiguous()
    logits = Logits(ignore_index, softcap, float(logit_scale))
    stats = LogProbsFunction.apply(x, target.reshape(-1).contiguous(), want, logits)
    return named(stats, want, target.shape)


def wanted(name: str, statistics: Sequence[str]) -> tuple[bool, ...]:
    """For each of `CHOICES` whether it is asked for."""
    for statistic in statistics:
        if statistic not in CHOICES:
            raise ValueError(f"{name}: statistics are {', '.join(CHOICES)}, not {statistic!r}")
    return tuple(choice in statistics for choice in CHOICES)


def named(stats: Any, want: Sequence[bool], shape: Sequence[int]) -> LogProbs:
    """The fields of `Stats` as `LogProbs`."""
    log_prob, lse, _, *more = stats
    shown = (t.reshape(shape) if w else None for t, w in zip(more, want, strict=True))
    return LogProbs(log_prob.reshape(shape), lse.reshape(shape), *shown)
