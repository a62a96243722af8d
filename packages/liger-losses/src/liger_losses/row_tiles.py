"""What the row kernels make of rows of logits x: tiles of z = y * unit, the statistics of a row.

Source: the online sums follow Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from liger_core.kernels import tanh
from liger_core.lang import tl, triton

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load(X, cols, V, softcap, logit_scale, acc: tl.constexpr, EDGE: tl.constexpr):
    """A tile of logits x, or of capped logits and their slope dz/dx; -inf beyond the row, which
    only an EDGE tile reaches.
    """
    if EDGE:
        y = tl.load(X + cols, mask=(cols >= 0) & (cols < V), other=float("-inf")).to(acc)
    else:
        y = tl.load(X + cols).to(acc)
    slope = logit_scale
    if softcap is not None:
        t = tanh(y * logit_scale / softcap)
        y = softcap * t
        if EDGE:
            y = tl.where((cols >= 0) & (cols < V), y, float("-inf"))
        slope = logit_scale * (1.0 - t * t)
    return y, slope


@triton.jit
def _unit(softcap, logit_scale):
    """z of what `_load` returns: y * unit. Maxima are taken of y, so the scale costs nothing an
    element.
    """
    unit = logit_scale
    if softcap is not None:
        unit = tl.cast(1.0, logit_scale.dtype)
    return unit


@triton.jit
def _finite(m):
    """A reference for exp2(u - m) that keeps a sum over nothing but -inf at zero."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _ratio(a, b, unit):
    """e^(unit * (a - b)) for a <= b to an ulp or two: a - b and its product with log2(e) round by
    more, so what they lose is added, and ln(2) is taken in two parts.
    """
    a = tl.maximum(a, b - 1100.0)
    d = a - b
    lost = (a - (d - (d - a))) - (b + (d - a))
    n = tl.floor(d * unit * LOG2_E)
    rest = (d * unit - n * 0.693359375) + (n * 0.00021219444005469057 + lost * unit)
    return tl.exp2(n) * tl.exp2(rest * LOG2_E)


@triton.jit
def _is_edge(start, target, V, BLOCK_V: tl.constexpr):
    """Whether the tile at `start` reaches beyond the row or holds the target."""
    return (start + BLOCK_V > V) | ((target >= start) & (target < start + BLOCK_V))


@triton.jit
def _merge_largest(y, cols, best, where):
    """The largest so far of each group of columns, and the first column that has it."""
    top, at = tl.max(y, axis=1, return_indices=True)
    at += tl.min(cols, axis=1)
    return tl.maximum(top, best), tl.where(top > best, at, where)


@triton.jit
def _first_of(best, where, V):
    """The first column that has the largest of all groups."""
    return tl.min(tl.where(best == tl.max(best, axis=0), where, V), axis=0)


@triton.jit
def _accumulate(
    X, WEIGHT, cols, target, V, m, sum, sum_wy, best, where, unit, label_smoothing, softcap,
    logit_scale, ARGMAX: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Online maximum and sum of 2^(unit log2(e) (y - m)) over each group of eight, and the first of
    the largest; an EDGE tile may hold the target, which only that last sees.
    """
    y, _ = _load(X, cols, V, softcap, logit_scale, m.dtype, EDGE)
    if label_smoothing is not None:
        w_y = tl.where(cols < V, y, 0.0) if EDGE else y
        if WEIGHT is not None:
            w_y *= tl.load(WEIGHT + cols, mask=cols < V, other=0.0).to(m.dtype)
        sum_wy += tl.sum(w_y, axis=1)
    if ARGMAX:
        best, where = _merge_largest(y, cols, best, where)
    if EDGE:
        y = tl.where(cols == target, float("-inf"), y)
    m_new = tl.maximum(m, tl.max(y, axis=1))
    reference = _finite(m_new) * unit * LOG2_E
    sum *= tl.exp2(m * unit * LOG2_E - reference)
    sum += tl.sum(tl.exp2(y * (unit * LOG2_E) - reference[:, None]), axis=1)
    return m_new, sum, sum_wy, best, where


@triton.jit
def _statistics(
    X, WEIGHT, target, V, label_smoothing, softcap, logit_scale,
    acc: tl.constexpr, ARGMAX: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """lse, rest, log_prob (NaN for a target out of range), sum_j w_j z_j and argmax of a row."""
    # groups of eight classes belong to one thread: no exchange between threads in the loop
    groups: tl.constexpr = BLOCK_V // 8
    cols = tl.arange(0, groups)[:, None] * 8 + tl.arange(0, 8)[None, :]
    m = tl.full((groups,), float("-inf"), acc)
    sum = tl.zeros((groups,), acc)
    sum_wy = tl.zeros((groups,), acc)
    best = tl.full((groups,), float("-inf"), acc)
    where = tl.zeros((groups,), tl.int32)
    unit = _unit(softcap, logit_scale)
    for start in range(0, V, BLOCK_V):
        if _is_edge(start, target, V, BLOCK_V):
            m, sum, sum_wy, best, where = _accumulate(
                X, WEIGHT, start + cols, target, V, m, sum, sum_wy, best, where, unit,
                label_smoothing, softcap, logit_scale, ARGMAX, EDGE=True,
            )  # fmt: skip
        else:
            m, sum, sum_wy, best, where = _accumulate(
                X, WEIGHT, start + cols, target, V, m, sum, sum_wy, best, where, unit,
                label_smoothing, softcap, logit_scale, ARGMAX, EDGE=False,
            )  # fmt: skip
    top = tl.max(m, axis=0)
    others = tl.sum(sum * tl.exp2((m - _finite(top)) * unit * LOG2_E), axis=0)

    y_t, _ = _load(X, target, V, softcap, logit_scale, acc, EDGE=True)
    y_t = tl.where((target >= 0) & (target < V), y_t, float("nan"))
    reference = _finite(tl.maximum(top, y_t))
    others *= _ratio(top, reference, unit)
    total = others + tl.exp2((y_t - reference) * unit * LOG2_E)
    log_total = tl.log2(total) * LN_2
    return (
        reference * unit + log_total,
        others / total,
        (y_t - reference) * unit - log_total,
        tl.sum(sum_wy, axis=0) * unit,
        _first_of(best, where, V),
    )
