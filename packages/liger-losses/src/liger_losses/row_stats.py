"""Statistics of rows of logits and the gradient of any function of them: one kernel pair.

    z = softcap * tanh(scale * x / softcap), or scale * x;  p_j = exp(z_j) / sum_k exp(z_k)
    log_prob = z_t - lse for target t;  lse = log(sum_j exp(z_j));  entropy = -sum_j p_j log(p_j)
    mean = sum_j z_j / V;  squares = sum_j p_j^2;  argmax, the first of the largest

Statistics are fp32 (fp64 for fp64 logits) and rows independent. `row_stats_torch` is the same where
there is no Triton.

    x [M, V] logits; target [M]; every statistic and the gradient g_<statistic> of it [M]
    rest = 1 - p_t, summed without p_t so that it keeps its digits
    dz_j = p_j (g_lse - g_log_prob - g_entropy (z_j - lse + entropy) + 2 g_squares (p_j - squares))
           + g_mean / V,  with g_log_prob * rest in place of -g_log_prob * p_t for j = t
    dx = dz * scale * (1 - (z / softcap)^2)

A label outside [0, V) that is not `ignore_index` touches no memory and makes its row's log_prob,
and the row's gradient, NaN. The row of an ignored label is not read: its statistics and gradient
are 0. The backward takes x as a shard of rows whose lse and rest it is given: there a label outside
[0, V) is a class of another shard, and what makes its row NaN is a NaN lse.

Source: derivatives of the softmax; the online sums follow Milakov and Gimelshein 2018,
arXiv:1805.02867.
"""

import torch
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div, power_of_2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .row_stats_torch import Logits, Stats, row_stats_bwd_torch, row_stats_fwd_torch
from .row_tiles import (
    LN_2,
    LOG2_E,
    _finite,
    _first_of,
    _is_edge,
    _load,
    _merge_largest,
    _ratio,
    _unit,
)

__all__ = ["Logits", "Stats", "row_stats_bwd", "row_stats_fwd"]


@triton.jit
def _accumulate_stats(
    X, cols, target, V, m, sum, sum_ey, sum_ee, sum_y, best, where, unit, softcap, logit_scale,
    ENTROPY: tl.constexpr, MEAN: tl.constexpr, SQUARES: tl.constexpr, ARGMAX: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Online maximum m and, with e = e^(unit (y - m)), sums of e, e (y - m), e^2 and y over each
    group of eight columns; the first of the largest. An EDGE tile may hold the target, which only
    the last two see.
    """
    y, _ = _load(X, cols, V, softcap, logit_scale, m.dtype, EDGE)
    if MEAN:
        sum_y += tl.sum(tl.where(cols < V, y, 0.0) if EDGE else y, axis=1)
    if ARGMAX:
        best, where = _merge_largest(y, cols, best, where)
    if EDGE:
        y = tl.where(cols == target, float("-inf"), y)
    m_new = tl.maximum(m, tl.max(y, axis=1))
    reference = _finite(m_new)
    old = tl.exp2((m - reference) * unit * LOG2_E)
    e = tl.exp2((y - reference[:, None]) * (unit * LOG2_E))
    if ENTROPY:
        sum_ey += tl.where(sum == 0.0, 0.0, (m - reference) * sum)
        sum_ey *= old
        sum_ey += tl.sum(tl.where(e == 0.0, 0.0, e * (y - reference[:, None])), axis=1)
    if SQUARES:
        sum_ee = sum_ee * old * old + tl.sum(e * e, axis=1)
    return m_new, sum * old + tl.sum(e, axis=1), sum_ey, sum_ee, sum_y, best, where


@triton.jit
def _row_stats_fwd_kernel(
    X, TARGET, LOG_PROB, LSE, REST, ENTROPY, MEAN, SQUARES, ARGMAX, stride_x, V, ignore_index,
    softcap, logit_scale, BLOCK_V: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LSE.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(TARGET + row)
    logit_scale = tl.cast(logit_scale, acc)
    if softcap is not None:
        softcap = tl.cast(softcap, acc)
    X += row * stride_x
    if target == ignore_index:
        _store_stats(
            0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1, row,
            LOG_PROB, LSE, REST, ENTROPY, MEAN, SQUARES, ARGMAX,
        )  # fmt: skip
        return

    # groups of eight classes belong to one thread: no exchange between threads in the loop
    groups: tl.constexpr = BLOCK_V // 8
    cols = tl.arange(0, groups)[:, None] * 8 + tl.arange(0, 8)[None, :]
    m = tl.full((groups,), float("-inf"), acc)
    best = tl.full((groups,), float("-inf"), acc)
    where = tl.zeros((groups,), tl.int32)
    sum = tl.zeros((groups,), acc)
    sum_ey = tl.zeros((groups,), acc)
    sum_ee = tl.zeros((groups,), acc)
    sum_y = tl.zeros((groups,), acc)
    unit = _unit(softcap, logit_scale)
    for start in range(0, V, BLOCK_V):
        if _is_edge(start, target, V, BLOCK_V):
            m, sum, sum_ey, sum_ee, sum_y, best, where = _accumulate_stats(
                X, start + cols, target, V, m, sum, sum_ey, sum_ee, sum_y, best, where, unit,
                softcap, logit_scale, ENTROPY is not None, MEAN is not None, SQUARES is not None,
                ARGMAX is not None, EDGE=True,
            )  # fmt: skip
        else:
            m, sum, sum_ey, sum_ee, sum_y, best, where = _accumulate_stats(
                X, start + cols, target, V, m, sum, sum_ey, sum_ee, sum_y, best, where, unit,
                softcap, logit_scale, ENTROPY is not None, MEAN is not None, SQUARES is not None,
                ARGMAX is not None, EDGE=False,
            )  # fmt: skip

    log_prob, lse, rest, entropy, squares = _reduce(
        X, target, V, m, sum, sum_ey, sum_ee, unit, softcap, logit_scale, acc
    )
    argmax = _first_of(best, where, V)
    _store_stats(
        log_prob, lse, rest, entropy, tl.sum(sum_y, axis=0) * unit / V, squares, argmax, row,
        LOG_PROB, LSE, REST, ENTROPY, MEAN, SQUARES, ARGMAX,
    )  # fmt: skip


@triton.jit
def _reduce(
    X, target, V, m, sum, sum_ey, sum_ee, unit, softcap, logit_scale, acc: tl.constexpr
):  # fmt: skip
    """log_prob, lse, rest, entropy and squares from the sums of the groups and the target."""
    # the groups, relative to the largest of their maxima
    top = tl.max(m, axis=0)
    factor = tl.exp2((m - _finite(top)) * unit * LOG2_E)
    moved = tl.where(sum == 0.0, 0.0, (m - top) * sum)
    ey = tl.sum((sum_ey + moved) * factor, axis=0)
    ee = tl.sum(sum_ee * factor * factor, axis=0)
    others = tl.sum(sum * factor, axis=0)

    # and the target; out of range it makes all of its row NaN
    y_t, _ = _load(X, target, V, softcap, logit_scale, acc, EDGE=True)
    y_t = tl.where((target >= 0) & (target < V), y_t, float("nan"))
    reference = _finite(tl.maximum(top, y_t))
    factor = _ratio(top, reference, unit)
    ey = (ey + tl.where(others == 0.0, 0.0, (top - reference) * others)) * factor
    others *= factor
    e_t = tl.exp2((y_t - reference) * unit * LOG2_E)
    ey += tl.where(e_t == 0.0, 0.0, e_t * (y_t - reference))
    total = others + e_t
    log_total = tl.log2(total) * LN_2
    return (
        (y_t - reference) * unit - log_total,
        reference * unit + log_total,
        others / total,
        log_total - ey / total * unit,
        (ee * factor * factor + e_t * e_t) / (total * total),
    )


@triton.jit
def _store_stats(
    log_prob, lse, rest, entropy, mean, squares, argmax, row,
    LOG_PROB, LSE, REST, ENTROPY, MEAN, SQUARES, ARGMAX,
):  # fmt: skip
    tl.store(LOG_PROB + row, log_prob)
    tl.store(LSE + row, lse)
    tl.store(REST + row, rest)
    if ENTROPY is not None:
        tl.store(ENTROPY + row, entropy)
    if MEAN is not None:
        tl.store(MEAN + row, mean)
    if SQUARES is not None:
        tl.store(SQUARES + row, squares)
    if ARGMAX is not None:
        tl.store(ARGMAX + row, argmax)


@triton.jit
def _optional(G, row, acc: tl.constexpr):
    g = tl.full((), 0.0, acc)
    if G is not None:
        g = tl.load(G + row).to(acc)
    return g


@triton.jit
def _row_stats_bwd_kernel(
    X, TARGET, LSE, REST, ENTROPY, SQUARES, DX,
    G_LOG_PROB, G_LSE, G_ENTROPY, G_MEAN, G_SQUARES, stride_x, stride_dx, V, width, ignore_index,
    softcap, logit_scale, BLOCK_V: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LSE.dtype.element_ty
    tiles = tl.cdiv(V, BLOCK_V)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * BLOCK_V
    cols = start + tl.arange(0, BLOCK_V)
    target = tl.load(TARGET + row)
    logit_scale = tl.cast(logit_scale, acc)
    if softcap is not None:
        softcap = tl.cast(softcap, acc)
    DX += row * stride_dx
    if target == ignore_index:
        tl.store(DX + cols, tl.zeros((BLOCK_V,), DX.dtype.element_ty), mask=cols < width)
        return

    lse = tl.load(LSE + row)
    g_log_prob = _optional(G_LOG_PROB, row, acc)
    y, slope = _load(X + row * stride_x, cols, width, softcap, logit_scale, acc, EDGE=True)
    z = y * _unit(softcap, logit_scale)
    p = tl.exp2(z * LOG2_E - lse * LOG2_E)
    k = _optional(G_LSE, row, acc) + tl.zeros_like(p)
    if G_ENTROPY is not None:
        # a class of probability 0 has no z
        log_p = tl.where(p == 0.0, 0.0, z - lse)
        k -= tl.load(G_ENTROPY + row).to(acc) * (log_p + tl.load(ENTROPY + row))
    if G_SQUARES is not None:
        k += 2.0 * tl.load(G_SQUARES + row).to(acc) * (p - tl.load(SQUARES + row))
    own = g_log_prob * tl.load(REST + row)
    dx = p * k + tl.where(cols == target, own, -g_log_prob * p)
    if G_MEAN is not None:
        dx += tl.load(G_MEAN + row).to(acc) / V
    tl.store(DX + cols, (dx * slope).to(DX.dtype.element_ty), mask=cols < width)


def _block(V: int) -> int:
    return min(max(power_of_2(V), 256), 4096)


def _stats_runtime(logits: Logits) -> tuple[float | None, ...]:
    return logits.ignore_index, logits.softcap, float(logits.logit_scale)


def row_stats_fwd(x: Tensor, target: Tensor, want: tuple[bool, ...], logits: Logits) -> Stats:
    """Statistics of each row of x [M, V]; `want` says which of entropy, mean, squares, argmax."""
    if not use_kernels(x):
        return row_stats_fwd_torch(x, target, want, logits)
    M, V = x.shape
    acc = torch.promote_types(x.dtype, torch.float32)
    kinds = (acc, acc, acc, torch.int64)
    always = (torch.empty(M, dtype=acc, device=x.device) for _ in range(3))
    asked = (
        torch.empty(M, dtype=kind, device=x.device) if w else None
        for kind, w in zip(kinds, want, strict=True)
    )  # fmt: skip
    stats = Stats(*always, *asked)
    if M:
        block_v = _block(V)
        launch(
            _row_stats_fwd_kernel, (M,), x, target, *stats, x.stride(0), V, *_stats_runtime(logits),
            num_warps=min(max(block_v // 512, 4), 16), BLOCK_V=block_v,
        )  # fmt: skip
    return stats


def row_stats_bwd(
    x: Tensor, target: Tensor, stats: Stats, gs: Stats, logits: Logits, dx: Tensor,
    classes: int | None = None,
) -> None:  # fmt: skip
    """Writes into dx [M, V], which may be x, the gradient that follows from `gs`, those of the
    statistics: [M] contiguous or None; that of rest is not used. `classes` as in `row_loss_fwd`.
    """
    if not use_kernels(x):
        x, dx = x[:, :classes], dx[:, :classes]
        return row_stats_bwd_torch(x, target, stats, gs, logits, dx)
    M, width = x.shape
    if M:
        V = width if classes is None else classes
        block_v = _block(V)
        launch(
            _row_stats_bwd_kernel, (M * ceil_div(V, block_v),),
            x, target, stats.lse, stats.rest, stats.entropy, stats.squares, dx,
            gs.log_prob, gs.lse, gs.entropy, gs.mean, gs.squares, x.stride(0), dx.stride(0), V,
            width, *_stats_runtime(logits), num_warps=8, BLOCK_V=block_v,
        )  # fmt: skip
    return None
