"""What the row kernels make of rows of logits x: tiles of z = y * unit, the statistics of a row.

Source: the online sums follow Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from liger_core.kernels import tanh
from liger_core.lang import tl, triton

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _columns(BLOCK_V: tl.constexpr):
    """Columns of a tile, in groups of eight that belong to one thread: a reduction over a group
    takes no exchange between threads.
    """
    return tl.arange(0, BLOCK_V // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def _tile(X, start, width, BLOCK_V: tl.constexpr, PAIRS: tl.constexpr):
    """The logits of a tile as they lie, -inf outside of the `width` columns that may be read, for
    `_values`. PAIRS takes two bfloat16 as one integer, of an even number of them.

    No tile begins before the row, but with these masks Triton 3.6 takes 40 registers on an H200,
    with the upper bound alone 50: then a multiprocessor holds two programs of 16 warps, not three.
    """
    if PAIRS:
        pairs = tl.arange(0, BLOCK_V // 8)[:, None] * 4 + tl.arange(0, 4)[None, :]
        inside = (pairs >= -start // 2) & (pairs < (width - start) // 2)
        X = (X + start).to(tl.pointer_type(tl.int32))
        x = tl.load(X + pairs, mask=inside, other=-8323200)
    else:
        cols = _columns(BLOCK_V)
        inside = (cols >= -start) & (cols < width - start)
        x = tl.load(X + start + cols, mask=inside, other=float("-inf"))
    return x


@triton.jit
def _values(x, acc: tl.constexpr, BLOCK_V: tl.constexpr, PAIRS: tl.constexpr):
    """The logits that `_tile` loaded: of a pair in one instruction each, where converting a
    bfloat16 takes two.
    """
    if PAIRS:
        first = (x << 16).to(tl.float32, bitcast=True)
        second = (x & -65536).to(tl.float32, bitcast=True)
        y = tl.reshape(tl.join(first, second), [BLOCK_V // 8, 8])
    else:
        y = x.to(acc)
    return y


@triton.jit
def _capped(x, inside, softcap, logit_scale, acc: tl.constexpr):
    """Logits x, or capped logits, and their slope dz/dx; -inf where not `inside`, if that is given
    and x is -inf there.
    """
    y = x.to(acc)
    slope = logit_scale
    if softcap is not None:
        t = tanh(y * logit_scale / softcap)
        y = softcap * t
        if inside is not None:
            y = tl.where(inside, y, float("-inf"))
        slope = logit_scale * (1.0 - t * t)
    return y, slope


@triton.jit
def _load(X, cols, V, softcap, logit_scale, acc: tl.constexpr, EDGE: tl.constexpr):
    """`_capped` of a tile; -inf beyond the row, which only an EDGE tile reaches."""
    if EDGE:
        inside = (cols >= 0) & (cols < V)
        x = tl.load(X + cols, mask=inside, other=float("-inf"))
        return _capped(x, inside, softcap, logit_scale, acc)
    return _capped(tl.load(X + cols), None, softcap, logit_scale, acc)


@triton.jit
def _target(X, target, V, softcap, logit_scale, acc: tl.constexpr):
    """`_load` of the target, NaN for one out of range."""
    y_t, slope = _load(X, target, V, softcap, logit_scale, acc, EDGE=True)
    return tl.where((target >= 0) & (target < V), y_t, float("nan")), slope


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
    x, WEIGHT, start, cols, target, V, m, sum, sum_wy, best, where, unit, label_smoothing, softcap,
    logit_scale, ARGMAX: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Online maximum and sum of 2^(unit log2(e) (y - m)) over each group of eight columns of the
    tile x at `start`, and the first of the largest; the target is seen by that last alone.
    """
    inside = cols < V - start
    y, _ = _capped(x, inside, softcap, logit_scale, m.dtype)
    if RAGGED:
        y = tl.where(inside, y, float("-inf"))
    if label_smoothing is not None:
        w_y = tl.where(inside, y, 0.0)
        if WEIGHT is not None:
            w_y *= tl.load(WEIGHT + start + cols, mask=inside, other=0.0).to(m.dtype)
        sum_wy += tl.sum(w_y, axis=1)
    if ARGMAX:
        best, where = _merge_largest(y, start + cols, best, where)
    # 32 bits suffice: a label that wraps is out of range, and all of its row NaN
    y = tl.where(cols == (target - start).to(tl.int32), float("-inf"), y)
    m_new = tl.maximum(m, tl.max(y, axis=1))
    reference = _finite(m_new) * unit * LOG2_E
    sum *= tl.exp2(m * unit * LOG2_E - reference)
    sum += tl.sum(tl.exp2(y * (unit * LOG2_E) - reference[:, None]), axis=1)
    return m_new, sum, sum_wy, best, where


@triton.jit
def _statistics(
    X, WEIGHT, target, y_t, V, width, label_smoothing, softcap, logit_scale, acc: tl.constexpr,
    ARGMAX: tl.constexpr, BLOCK_V: tl.constexpr, PAIRS: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """lse, rest, log_prob, sum_j w_j z_j and argmax of a row; y_t is what `_load` makes of its
    target, NaN for one out of range.
    """
    cols = _columns(BLOCK_V)
    m = tl.full((BLOCK_V // 8,), float("-inf"), acc)
    sum = tl.zeros((BLOCK_V // 8,), acc)
    sum_wy = tl.zeros((BLOCK_V // 8,), acc)
    best = tl.full((BLOCK_V // 8,), float("-inf"), acc)
    where = tl.zeros((BLOCK_V // 8,), tl.int32)
    unit = _unit(softcap, logit_scale)
    ahead = _tile(X, 0, width, BLOCK_V, PAIRS)
    for start in range(0, V, BLOCK_V):
        x = ahead
        # on its way while this tile is summed
        ahead = _tile(X, start + BLOCK_V, width, BLOCK_V, PAIRS)
        x = _values(x, acc, BLOCK_V, PAIRS)
        m, sum, sum_wy, best, where = _accumulate(
            x, WEIGHT, start, cols, target, V, m, sum, sum_wy, best, where, unit,
            label_smoothing, softcap, logit_scale, ARGMAX, RAGGED,
        )  # fmt: skip
    top = tl.max(m, axis=0)
    others = tl.sum(sum * tl.exp2((m - _finite(top)) * unit * LOG2_E), axis=0)

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
