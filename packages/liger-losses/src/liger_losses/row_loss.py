"""The loss of rows of logits and its gradient: one kernel pair.

    z = softcap * tanh(scale * x / softcap), or scale * x;  lse = log(sum_j exp(z_j))
    loss = (1 - s) * w_t * (lse - z_t) + s / V * sum_j w_j (lse - z_j) + z_loss * lse^2

for target t, class weights w (1 by default) and label smoothing s. Losses and sums are fp32 (fp64
for fp64 logits). `row_loss_torch` is the same where there is no Triton.

    x [M, V] logits; target [M]; loss, lse, rest [M]
    p_j = exp(z_j - lse);  rest = 1 - p_t, summed without p_t so that it keeps its digits
    k = (1 - s) * w_t + s * mean(w) + 2 * z_loss * lse
    dz_j = p_j * k - s / V * w_j for j != t
    dz_t = k - (1 - s) * w_t - s / V * w_t - rest * k
    dx = dz * scale * (1 - (z / softcap)^2)

A label outside [0, V) that is not `ignore_index` touches no memory and makes the loss and the
gradient of its row NaN.

Source: torch.nn.functional.cross_entropy; z-loss: Chowdhery et al. 2022, arXiv:2204.02311;
smoothing: arXiv:1512.00567.
"""

import torch
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div, power_of_2, tanh
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .row_loss_torch import Rows, Settings, row_loss_bwd_torch, row_loss_fwd_torch

__all__ = ["Rows", "Settings", "row_loss_bwd", "row_loss_fwd"]

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
def _accumulate(
    X,
    WEIGHT,
    cols,
    target,
    V,
    m,
    sum,
    sum_wy,
    unit,
    label_smoothing,
    softcap,
    logit_scale,
    EDGE: tl.constexpr,
):
    """Online maximum and sum of 2^(unit log2(e) (y - m)) over each group of eight; an EDGE tile may
    hold the target.
    """
    y, _ = _load(X, cols, V, softcap, logit_scale, m.dtype, EDGE)
    if label_smoothing is not None:
        w_y = tl.where(cols < V, y, 0.0) if EDGE else y
        if WEIGHT is not None:
            w_y *= tl.load(WEIGHT + cols, mask=cols < V, other=0.0).to(m.dtype)
        sum_wy += tl.sum(w_y, axis=1)
    if EDGE:
        y = tl.where(cols == target, float("-inf"), y)
    m_new = tl.maximum(m, tl.max(y, axis=1))
    reference = _finite(m_new) * unit * LOG2_E
    sum *= tl.exp2(m * unit * LOG2_E - reference)
    sum += tl.sum(tl.exp2(y * (unit * LOG2_E) - reference[:, None]), axis=1)
    return m_new, sum, sum_wy


@triton.jit
def _is_edge(start, target, V, BLOCK_V: tl.constexpr):
    """Whether the tile at `start` reaches beyond the row or holds the target."""
    return (start + BLOCK_V > V) | ((target >= start) & (target < start + BLOCK_V))


@triton.jit
def _gradient_tile(
    X, WEIGHT, DX, cols, target, lse, rest, w_t, mean_weight, g, V,
    label_smoothing, z_loss, softcap, logit_scale, EDGE: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a tile of logits, `g` being that of the row's loss."""
    y, slope = _load(X, cols, V, softcap, logit_scale, lse.dtype, EDGE)
    k = w_t
    own = 0.0
    smooth = 0.0
    if label_smoothing is not None:
        smooth = tl.cast(label_smoothing, lse.dtype)
        k = (1.0 - smooth) * w_t + smooth * mean_weight
        own = smooth * (mean_weight - w_t / V)
    if z_loss is not None:
        k += 2.0 * tl.cast(z_loss, lse.dtype) * lse
        own += 2.0 * tl.cast(z_loss, lse.dtype) * lse
    scale = slope * g
    dx = tl.exp2(y * (_unit(softcap, logit_scale) * LOG2_E) - lse * LOG2_E) * (k * scale)
    if label_smoothing is not None:
        if WEIGHT is not None:
            dx -= tl.load(WEIGHT + cols, mask=cols < V, other=0.0).to(lse.dtype) * (
                smooth / V * scale
            )
        else:
            dx -= smooth / V * scale
    if EDGE:
        dx = tl.where(cols == target, (own - rest * k) * scale, dx)
        tl.store(DX + cols, dx.to(DX.dtype.element_ty), mask=cols < V)
    else:
        tl.store(DX + cols, dx.to(DX.dtype.element_ty))


@triton.jit
def _gradient(
    X, WEIGHT, DX, start, target, lse, rest, w_t, mean_weight, g, V,
    label_smoothing, z_loss, softcap, logit_scale, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """`_gradient_tile` at `start`, with the checks of an edge only where it is one."""
    cols = start + tl.arange(0, BLOCK_V)
    if _is_edge(start, target, V, BLOCK_V):
        _gradient_tile(
            X, WEIGHT, DX, cols, target, lse, rest, w_t, mean_weight, g, V,
            label_smoothing, z_loss, softcap, logit_scale, EDGE=True,
        )  # fmt: skip
    else:
        _gradient_tile(
            X, WEIGHT, DX, cols, target, lse, rest, w_t, mean_weight, g, V,
            label_smoothing, z_loss, softcap, logit_scale, EDGE=False,
        )  # fmt: skip


@triton.jit
def _statistics(
    X, WEIGHT, target, V, label_smoothing, softcap, logit_scale,
    acc: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """lse, rest, the target's z (NaN if out of range) and sum_j w_j z_j of a row."""
    # groups of eight classes belong to one thread: no exchange between threads in the loop
    cols = tl.arange(0, BLOCK_V // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    m = tl.full((BLOCK_V // 8,), float("-inf"), acc)
    sum = tl.zeros((BLOCK_V // 8,), acc)
    sum_wy = tl.zeros((BLOCK_V // 8,), acc)
    unit = _unit(softcap, logit_scale)
    for start in range(0, V, BLOCK_V):
        if _is_edge(start, target, V, BLOCK_V):
            m, sum, sum_wy = _accumulate(
                X, WEIGHT, start + cols, target, V, m, sum, sum_wy, unit,
                label_smoothing, softcap, logit_scale, EDGE=True,
            )  # fmt: skip
        else:
            m, sum, sum_wy = _accumulate(
                X, WEIGHT, start + cols, target, V, m, sum, sum_wy, unit,
                label_smoothing, softcap, logit_scale, EDGE=False,
            )  # fmt: skip
    top = tl.max(m, axis=0)
    others = tl.sum(sum * tl.exp2((m - _finite(top)) * unit * LOG2_E), axis=0)

    y_t, _ = _load(X, target, V, softcap, logit_scale, acc, EDGE=True)
    y_t = tl.where((target >= 0) & (target < V), y_t, float("nan"))
    reference = _finite(tl.maximum(top, y_t))
    others *= _ratio(top, reference, unit)
    total = others + tl.exp2((y_t - reference) * unit * LOG2_E)
    lse = reference * unit + tl.log2(total) * LN_2
    return lse, others / total, y_t * unit, tl.sum(sum_wy, axis=0) * unit


@triton.jit
def _weights(WEIGHT, MEAN_WEIGHT, target, V, acc: tl.constexpr):
    """The weight of the target and the mean weight, 1 without weights."""
    w_t = tl.full((), 1.0, acc)
    mean_weight = tl.full((), 1.0, acc)
    if WEIGHT is not None:
        w_t = tl.load(WEIGHT + target, mask=(target >= 0) & (target < V), other=0.0).to(acc)
        mean_weight = tl.load(MEAN_WEIGHT).to(acc)
    return w_t, mean_weight


@triton.jit
def _row_loss_fwd_kernel(
    X, TARGET, WEIGHT, MEAN_WEIGHT, LOSS, LSE, REST, DX, G, stride_x, stride_dx, V, ignore_index,
    label_smoothing, z_loss, softcap, logit_scale, BLOCK_V: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LOSS.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_V)
    target = tl.load(TARGET + row)
    logit_scale = tl.cast(logit_scale, acc)
    if softcap is not None:
        softcap = tl.cast(softcap, acc)
    X += row * stride_x
    if DX is not None:
        DX += row * stride_dx

    if target == ignore_index:
        tl.store(LOSS + row, 0.0)
        tl.store(LSE + row, 0.0)
        tl.store(REST + row, 0.0)
        if DX is not None:
            for start in range(0, V, BLOCK_V):
                zeros = tl.zeros((BLOCK_V,), DX.dtype.element_ty)
                tl.store(DX + start + cols, zeros, mask=start + cols < V)
        return

    lse, rest, z_t, wz = _statistics(
        X, WEIGHT, target, V, label_smoothing, softcap, logit_scale, acc, BLOCK_V
    )
    w_t, mean_weight = _weights(WEIGHT, MEAN_WEIGHT, target, V, acc)
    loss = w_t * (lse - z_t)
    if label_smoothing is not None:
        smooth = tl.cast(label_smoothing, acc)
        loss = (1.0 - smooth) * loss + smooth * (mean_weight * lse - wz / V)
    if z_loss is not None:
        loss += tl.cast(z_loss, acc) * lse * lse
    tl.store(LOSS + row, loss)
    tl.store(LSE + row, lse)
    tl.store(REST + row, rest)

    if DX is not None:
        g = tl.load(G).to(acc)
        # last tile first: it is the one most likely still in the cache
        for back in range(0, V, BLOCK_V):
            start = (V - 1) // BLOCK_V * BLOCK_V - back
            _gradient(
                X, WEIGHT, DX, start, target, lse, rest, w_t, mean_weight, g, V,
                label_smoothing, z_loss, softcap, logit_scale, BLOCK_V,
            )  # fmt: skip


@triton.jit
def _row_loss_bwd_kernel(
    X, TARGET, WEIGHT, MEAN_WEIGHT, LSE, REST, DX, G, stride_x, stride_dx, stride_g, V,
    ignore_index, label_smoothing, z_loss, softcap, logit_scale, BLOCK_V: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LSE.dtype.element_ty
    tiles = tl.cdiv(V, BLOCK_V)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * BLOCK_V
    target = tl.load(TARGET + row)
    logit_scale = tl.cast(logit_scale, acc)
    if softcap is not None:
        softcap = tl.cast(softcap, acc)
    X += row * stride_x
    DX += row * stride_dx
    if target == ignore_index:
        cols = start + tl.arange(0, BLOCK_V)
        tl.store(DX + cols, tl.zeros((BLOCK_V,), DX.dtype.element_ty), mask=cols < V)
        return

    w_t, mean_weight = _weights(WEIGHT, MEAN_WEIGHT, target, V, acc)
    _gradient(
        X, WEIGHT, DX, start, target, tl.load(LSE + row), tl.load(REST + row), w_t, mean_weight,
        tl.load(G + row * stride_g).to(acc), V, label_smoothing, z_loss, softcap, logit_scale,
        BLOCK_V,
    )  # fmt: skip


def _config(V: int, gradient: bool) -> tuple[int, int]:
    """(columns, warps) of a tile of the forward.

    With the gradient a program reads its row twice: few, large programs keep the rows in flight
    within the cache.
    """
    widest = 4096 if not gradient else 8192 if V <= 65536 else 16384
    block_v = min(max(power_of_2(V), 256), widest)
    return block_v, min(max(block_v // 512, 4), 16)


def _runtime(settings: Settings) -> tuple[float | None, ...]:
    """The settings as kernel arguments: None where they change nothing, so that the kernel leaves
    the work out.
    """
    s = settings
    return (
        s.ignore_index,
        s.label_smoothing or None,
        s.z_loss or None,
        s.softcap,
        float(s.logit_scale),
    )


def row_loss_fwd(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    settings: Settings,
    dx: Tensor | None = None,
    g: Tensor | None = None,
) -> Rows:
    """Loss and statistics of each row of x [M, V]; with `dx` [M, V] also the gradient of sum(loss)
    * g, g a 0-d tensor.

    `dx` may be x itself.
    """
    if not use_kernels(x):
        return row_loss_fwd_torch(x, target, weight, settings, dx, g)
    M, V = x.shape
    acc = torch.promote_types(x.dtype, torch.float32)
    rows = Rows(*(torch.empty(M, dtype=acc, device=x.device) for _ in range(3)))
    if M:
        block_v, warps = _config(V, dx is not None)
        launch(
            _row_loss_fwd_kernel, (M,),
            x, target, weight, _mean(weight, acc), *rows, dx, g,
            x.stride(0), 0 if dx is None else dx.stride(0), V,
            *_runtime(settings), num_warps=warps, BLOCK_V=block_v,
        )  # fmt: skip
    return rows


def row_loss_bwd(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    settings: Settings,
    rows: Rows,
    dx: Tensor,
    g: Tensor,
) -> None:
    """Writes the gradient of sum(loss * g) into dx [M, V], which may be x; g is [M] or 0-d."""
    if not use_kernels(x):
        return row_loss_bwd_torch(x, target, weight, settings, rows, dx, g)
    M, V = x.shape
    if M:
        block_v = _config(V, False)[0]
        launch(
            _row_loss_bwd_kernel, (M * ceil_div(V, block_v),),
            x, target, weight, _mean(weight, rows.lse.dtype), rows.lse, rows.rest, dx, g,
            x.stride(0), dx.stride(0), g.stride(0) if g.ndim else 0, V,
            *_runtime(settings), num_warps=8, BLOCK_V=block_v,
        )  # fmt: skip
    return None


def _mean(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.mean(dtype=dtype)
