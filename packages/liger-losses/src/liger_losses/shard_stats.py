"""Statistics of rows of logits whose classes are spread over shards: what a shard has to tell the
others, and what all of that amounts to.

    y = softcap * tanh(scale * x / softcap), unit = 1, or y = x, unit = scale;  z = unit * y
    of a shard:  top = max_{j != t} y_j;  others = sum_{j != t} exp(z_j - unit * top);  y_t;  sum_y
    of the row:  m = max(tops, y_t);  rest * total = sum_shards others * exp(unit * (top - m))
                 total = rest * total + exp(unit * (y_t - m));  lse = unit * m + log(total)
                 log_prob = unit * (y_t - m) - log(total);  mean = unit * sum_shards sum_y / V

Each shard's lse would do, but for the digits: an lse of 40 is rounded by 2e-6, and with it the
gradient of the target's logit, rest = 1 - p_t. A maximum is exact.

    x [M, N] logits of this shard; label [M]: a column of x, or one of the codes below
    parts [K, M], K = 3, or 4 with sum_y: statistics of a shard; those of the row [M]
    M rows, N classes of this shard, V classes in all, R shards

The row of an IGNORED label is not read and has zeros, which make its row's loss 0; the label of an
INVALID one is NaN, and therefore the row. The class of an ELSEWHERE label is in another shard. The
gradient of a shard's logits is `row_stats_bwd` with the lse and rest of the row.

Source: the sums of Milakov and Gimelshein 2018, arXiv:1805.02867, over shards as in Megatron-LM,
arXiv:1909.08053.
"""

import torch
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div, power_of_2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .row_stats import Logits, Stats, _accumulate_stats
from .row_tiles import LN_2, LOG2_E, _finite, _is_edge, _load, _ratio, _unit

__all__ = ["ELSEWHERE", "IGNORED", "INVALID", "combine", "shard_stats"]

# labels that are no column of the shard
IGNORED, ELSEWHERE, INVALID = -1, -2, -3

_IGNORED = tl.constexpr(IGNORED)
_ELSEWHERE = tl.constexpr(ELSEWHERE)


@triton.jit
def _shard_stats_kernel(
    X, LABEL, TOP, OTHERS, Y_T, SUM_Y, stride_x, N, softcap, logit_scale, BLOCK_N: tl.constexpr
):  # fmt: skip
    acc: tl.constexpr = TOP.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(LABEL + row)
    logit_scale = tl.cast(logit_scale, acc)
    if softcap is not None:
        softcap = tl.cast(softcap, acc)
    X += row * stride_x
    if label == _IGNORED:
        tl.store(TOP + row, 0.0)
        tl.store(OTHERS + row, 0.0)
        tl.store(Y_T + row, 0.0)
        if SUM_Y is not None:
            tl.store(SUM_Y + row, 0.0)
        return

    # groups of eight classes belong to one thread: no exchange between threads in the loop
    groups: tl.constexpr = BLOCK_N // 8
    cols = tl.arange(0, groups)[:, None] * 8 + tl.arange(0, 8)[None, :]
    m = tl.full((groups,), float("-inf"), acc)
    sum = tl.zeros((groups,), acc)
    sum_y = tl.zeros((groups,), acc)
    unit = _unit(softcap, logit_scale)
    # statistics that are not asked for are handed through
    for start in range(0, N, BLOCK_N):
        if _is_edge(start, label, N, BLOCK_N):
            m, sum, _, _, sum_y, _, _ = _accumulate_stats(
                X, start + cols, label, N, m, sum, sum, sum, sum_y, m, m, unit, softcap,
                logit_scale, False, SUM_Y is not None, False, False, EDGE=True,
            )  # fmt: skip
        else:
            m, sum, _, _, sum_y, _, _ = _accumulate_stats(
                X, start + cols, label, N, m, sum, sum, sum, sum_y, m, m, unit, softcap,
                logit_scale, False, SUM_Y is not None, False, False, EDGE=False,
            )  # fmt: skip
    top = tl.max(m, axis=0)
    y_t, _ = _load(X, label, N, softcap, logit_scale, acc, EDGE=True)
    y_t = tl.where((label >= 0) & (label < N) | (label == _ELSEWHERE), y_t, float("nan"))
    tl.store(TOP + row, top)
    tl.store(OTHERS + row, tl.sum(sum * tl.exp2((m - _finite(top)) * unit * LOG2_E), axis=0))
    tl.store(Y_T + row, y_t)
    if SUM_Y is not None:
        tl.store(SUM_Y + row, tl.sum(sum_y, axis=0))


@triton.jit
def _combine_kernel(
    PARTS, LOG_PROB, LSE, REST, MEAN, R, K, M, V, unit, BLOCK_M: tl.constexpr
):  # fmt: skip
    acc: tl.constexpr = LSE.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = rows < M
    unit = tl.cast(unit, acc)
    stride = tl.cast(M, tl.int64)
    m = tl.full((BLOCK_M,), float("-inf"), acc)
    y_t = tl.full((BLOCK_M,), float("-inf"), acc)
    for shard in range(R):
        part = PARTS + shard * K * stride + rows
        m = tl.maximum(m, tl.load(part, mask=mask, other=0.0))
        # one shard has the target, and may have it as NaN
        y = tl.load(part + 2 * stride, mask=mask, other=0.0)
        y_t = tl.maximum(y_t, y, propagate_nan=tl.PropagateNan.ALL)
    m = _finite(tl.maximum(m, y_t))

    others = tl.zeros((BLOCK_M,), acc)
    sum_y = tl.zeros((BLOCK_M,), acc)
    for shard in range(R):
        part = PARTS + shard * K * stride + rows
        top = tl.load(part, mask=mask, other=0.0)
        others += tl.load(part + stride, mask=mask, other=0.0) * _ratio(top, m, unit)
        if MEAN is not None:
            sum_y += tl.load(part + 3 * stride, mask=mask, other=0.0)
    own = tl.exp2((y_t - m) * unit * LOG2_E)
    total = others + own
    log_total = tl.log2(total) * LN_2
    tl.store(LOG_PROB + rows, (y_t - m) * unit - log_total, mask=mask)
    tl.store(LSE + rows, m * unit + log_total, mask=mask)
    tl.store(REST + rows, others / total, mask=mask)
    if MEAN is not None:
        tl.store(MEAN + rows, sum_y * unit / V, mask=mask)


def shard_stats(x: Tensor, label: Tensor, logits: Logits, mean: bool) -> Tensor:
    """The parts [K, M] of x [M, N]; with sum_y if the mean is asked for."""
    M, N = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    parts = torch.empty((4 if mean else 3, M), dtype=dtype, device=x.device)
    if not use_kernels(x):
        return _shard_stats_torch(x, label, logits, parts)
    if M:
        top, others, y_t, *sum_y = parts.unbind()
        block_n = min(max(power_of_2(N), 256), 4096)
        launch(
            _shard_stats_kernel, (M,),
            x, label, top, others, y_t, sum_y[0] if mean else None, x.stride(0), N,
            logits.softcap, float(logits.logit_scale),
            num_warps=min(max(block_n // 512, 4), 16), BLOCK_N=block_n,
        )  # fmt: skip
    return parts


def combine(parts: Tensor, V: int, logits: Logits) -> Stats:
    """log_prob, lse, rest and, if the parts [R, K, M] have sum_y, the mean of each row."""
    R, K, M = parts.shape
    unit = float(logits.logit_scale) if logits.softcap is None else 1.0
    if not use_kernels(parts):
        return _combine_torch(parts, V, unit)
    log_prob, lse, rest, *mean = (parts.new_empty(M) for _ in range(K))
    stats = Stats(log_prob, lse, rest, mean=mean[0] if mean else None)
    if M:
        launch(
            _combine_kernel, (ceil_div(M, 128),),
            parts, log_prob, lse, rest, stats.mean, R, K, M, V, unit,
            num_warps=4, BLOCK_M=128,
        )  # fmt: skip
    return stats


def _shard_stats_torch(x: Tensor, label: Tensor, logits: Logits, parts: Tensor) -> Tensor:
    N, y, unit = x.shape[1], x.to(parts.dtype), logits.logit_scale
    if logits.softcap is not None:
        y, unit = logits.softcap * torch.tanh(y * unit / logits.softcap), 1.0
    inside = (label >= 0) & (label < N)
    # a column more, so that there is one to look at in a shard without classes
    rest = torch.nn.functional.pad(y, (0, 1), value=float("-inf"))
    index = label.where(inside, N).long()[:, None]
    y_t = rest.gather(1, index)[:, 0].where(inside | (label == ELSEWHERE), float("nan"))
    top = rest.scatter_(1, index, float("-inf")).amax(1)
    reference = top.masked_fill(top == float("-inf"), 0.0)
    others = ((rest - reference[:, None]) * unit).exp().sum(1)
    found = (top, others, y_t, y.sum(1))[: len(parts)]
    return torch.stack(found).masked_fill_(label == IGNORED, 0.0)


def _combine_torch(parts: Tensor, V: int, unit: float) -> Stats:
    top, others, y, *sum_y = parts.unbind(1)
    y_t = y.amax(0)
    m = torch.maximum(top.amax(0), y_t)
    m = m.masked_fill(m == float("-inf"), 0.0)
    others = (others * _ratio_torch(top, m, unit)).sum(0)
    total = others + ((y_t - m) * unit).exp()
    log_total = total.log()
    return Stats(
        (y_t - m) * unit - log_total,
        m * unit + log_total,
        others / total,
        mean=sum_y[0].sum(0) * unit / V if sum_y else None,
    )


def _ratio_torch(a: Tensor, b: Tensor, unit: float) -> Tensor:
    """e^(unit * (a - b)) for a <= b; what the difference loses to rounding is added."""
    a = torch.maximum(a, b - 1100.0)
    d = a - b
    lost = (a - (d - (d - a))) - (b + (d - a))
    return torch.exp(d * unit) * (1.0 + lost * unit)
