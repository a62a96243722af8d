"""The loss of rows of logits and its gradient: one kernel pair.

    z = softcap * tanh(scale * x / softcap), or scale * x;  lse = log(sum_j exp(z_j))
    loss = (1 - s) * w_t * (lse - z_t) + s / V * sum_j w_j (lse - z_j) + z_loss * lse^2

for target t, class weights w (1 by default) and label smoothing s. Losses and sums are fp32 (fp64
for fp64 logits). `row_loss_torch` is the same where there is no Triton.

    x [M, V] logits; target, loss and statistics [M]: lse, log_prob = z_t - lse, argmax of z and
    rest = 1 - p_t, summed without p_t so that it keeps its digits
    p_j = exp(z_j - lse)
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
from liger_core.kernels import ceil_div, power_of_2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .row_loss_torch import Rows, Settings, empty_rows, row_loss_bwd_torch, row_loss_fwd_torch
from .row_tiles import LOG2_E, _capped, _columns, _load, _statistics, _target, _tile, _unit, _values

__all__ = ["Rows", "Settings", "empty_rows", "row_loss_bwd", "row_loss_fwd"]


@triton.jit
def _factors(lse, w_t, mean_weight, V, label_smoothing, z_loss):
    """k, the smoothing, and what the gradient of the target has beside -rest * k."""
    k = w_t
    own = tl.zeros_like(lse)
    smooth = tl.zeros_like(lse)
    if label_smoothing is not None:
        smooth = tl.cast(label_smoothing, lse.dtype)
        k = (1.0 - smooth) * w_t + smooth * mean_weight
        own = smooth * (mean_weight - w_t / V)
    if z_loss is not None:
        k += 2.0 * tl.cast(z_loss, lse.dtype) * lse
        own += 2.0 * tl.cast(z_loss, lse.dtype) * lse
    return k, smooth, own


@triton.jit
def _gradient(
    x, WEIGHT, DX, start, cols, lse, k, smooth, g, V, width, label_smoothing, softcap, logit_scale
):  # fmt: skip
    """Writes the gradient of a tile of logits x, its target as any other, where `g` is that of the
    row's loss; anything to columns from V to `width`.
    """
    y, slope = _capped(x, None, softcap, logit_scale, lse.dtype)
    scale = slope * g
    dx = tl.exp2(y * (_unit(softcap, logit_scale) * LOG2_E) - lse * LOG2_E) * (k * scale)
    if label_smoothing is not None:
        if WEIGHT is not None:
            dx -= tl.load(WEIGHT + start + cols, mask=cols < V - start, other=0.0).to(lse.dtype) * (
                smooth / V * scale
            )
        else:
            dx -= smooth / V * scale
    # first out of the cache, which the rows still to be read again have use for
    dx, inside = dx.to(DX.dtype.element_ty), cols < width - start
    tl.store(DX + start + cols, dx, mask=inside, eviction_policy="evict_first")


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
def _store(
    loss, lse, rest, log_prob, argmax, row, LOSS, LSE, REST, LOG_PROB, ARGMAX
):  # fmt: skip
    tl.store(LOSS + row, loss)
    tl.store(LSE + row, lse)
    tl.store(REST + row, rest)
    if LOG_PROB is not None:
        tl.store(LOG_PROB + row, log_prob)
    if ARGMAX is not None:
        tl.store(ARGMAX + row, argmax)


@triton.jit
def _row_loss_fwd_kernel(
    X, TARGET, WEIGHT, MEAN_WEIGHT, LOSS, LSE, REST, LOG_PROB, ARGMAX, DX, G,
    stride_x, stride_dx, stride_g, V, width, ignore_index, label_smoothing, z_loss, softcap,
    logit_scale, BY_PROBABILITY: tl.constexpr, BLOCK_V: tl.constexpr, PAIRS: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LOSS.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(TARGET + row)
    logit_scale = tl.cast(logit_scale, acc)
    if softcap is not None:
        softcap = tl.cast(softcap, acc)
    if not RAGGED:
        width = V
    X += row * stride_x
    if DX is not None:
        DX += row * stride_dx

    if target == ignore_index:
        _store(0.0, 0.0, 0.0, 0.0, -1, row, LOSS, LSE, REST, LOG_PROB, ARGMAX)
        if DX is not None:
            for start in range(0, V, BLOCK_V):
                at = start + tl.arange(0, BLOCK_V)
                tl.store(DX + at, tl.zeros((BLOCK_V,), DX.dtype.element_ty), mask=at < width)
        return

    y_t, slope_t = _target(X, target, V, softcap, logit_scale, acc)
    lse, rest, log_prob, wz, argmax = _statistics(
        X, WEIGHT, target, y_t, V, width, label_smoothing, softcap, logit_scale, acc,
        ARGMAX is not None, BLOCK_V, PAIRS, RAGGED,
    )  # fmt: skip
    w_t, mean_weight = _weights(WEIGHT, MEAN_WEIGHT, target, V, acc)
    # a difference, so that nothing costs 0 and not -0
    loss = w_t * (0.0 - log_prob)
    if label_smoothing is not None:
        smooth = tl.cast(label_smoothing, acc)
        loss = (1.0 - smooth) * loss + smooth * (mean_weight * lse - wz / V)
    if z_loss is not None:
        loss += tl.cast(z_loss, acc) * lse * lse
    _store(loss, lse, rest, log_prob, argmax, row, LOSS, LSE, REST, LOG_PROB, ARGMAX)

    if DX is not None:
        g = tl.load(G + row * stride_g).to(acc)
        if BY_PROBABILITY:
            g *= tl.exp2(log_prob * LOG2_E)
        k, smooth, own = _factors(lse, w_t, mean_weight, V, label_smoothing, z_loss)
        # last tile first: it is the one most likely still in the cache
        cols = _columns(BLOCK_V)
        last = (V - 1) // BLOCK_V * BLOCK_V
        for back in range(0, V, BLOCK_V):
            start = last - back
            x = _values(_tile(X, start, width, BLOCK_V, PAIRS), acc, BLOCK_V, PAIRS)
            _gradient(
                x, WEIGHT, DX, start, cols, lse, k, smooth, g, V, width, label_smoothing,
                softcap, logit_scale,
            )  # fmt: skip
        tl.debug_barrier()
        inside = (target >= 0) & (target < V)
        dx_t = (own - rest * k) * slope_t * g
        tl.store(DX + target, dx_t.to(DX.dtype.element_ty), mask=inside)


@triton.jit
def _row_loss_bwd_kernel(
    X, TARGET, WEIGHT, MEAN_WEIGHT, LSE, REST, DX, G, stride_x, stride_dx, stride_g, V, width,
    ignore_index, label_smoothing, z_loss, softcap, logit_scale, BLOCK_V: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LSE.dtype.element_ty
    tiles = tl.cdiv(V, BLOCK_V)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * BLOCK_V
    target = tl.load(TARGET + row)
    logit_scale = tl.cast(logit_scale, acc)
    if softcap is not None:
        softcap = tl.cast(softcap, acc)
    if not RAGGED:
        width = V
    X += row * stride_x
    DX += row * stride_dx
    if target == ignore_index:
        cols = start + tl.arange(0, BLOCK_V)
        tl.store(DX + cols, tl.zeros((BLOCK_V,), DX.dtype.element_ty), mask=cols < width)
        return

    lse = tl.load(LSE + row)
    g = tl.load(G + row * stride_g).to(acc)
    w_t, mean_weight = _weights(WEIGHT, MEAN_WEIGHT, target, V, acc)
    k, smooth, own = _factors(lse, w_t, mean_weight, V, label_smoothing, z_loss)
    here = (target >= start) & (target < tl.minimum(start + BLOCK_V, V))
    # of this program's tile alone, which may be written from here on, and before any of its threads
    # does so
    _, slope_t = _load(X, tl.where(here, target, -1), V, softcap, logit_scale, acc, EDGE=True)
    tl.debug_barrier()
    x = _tile(X, start, width, BLOCK_V, PAIRS=False)
    _gradient(
        x, WEIGHT, DX, start, _columns(BLOCK_V), lse, k, smooth, g, V, width, label_smoothing,
        softcap, logit_scale,
    )  # fmt: skip
    tl.debug_barrier()
    dx_t = (own - tl.load(REST + row) * k) * slope_t * g
    tl.store(DX + target, dx_t.to(DX.dtype.element_ty), mask=here)


def _config(V: int, gradient: bool, spare: bool = False) -> tuple[int, int]:
    """(columns, warps) of a tile of the forward; `spare` registers leave room for larger ones.

    With the gradient a program reads its row twice: few, large programs keep the rows in flight
    within the cache. Of the widest rows a multiprocessor holds one, so that nothing loads while it
    adds up: the larger the tile, the rarer that is.
    """
    widest = 4096
    if gradient and V > 16384:
        widest = 8192 if V <= 65536 else 32768 if spare else 16384
    block_v = min(max(power_of_2(V), 256), widest)
    return block_v, min(max(block_v // 512, 4), 32)


def _runtime(settings: Settings) -> tuple[float | None, ...]:
    """The settings as kernel arguments: None where they change nothing, so that the kernel leaves
    the work out.
    """
    s = settings
    smoothing, z_loss = s.label_smoothing or None, s.z_loss or None
    return s.ignore_index, smoothing, z_loss, s.softcap, float(s.logit_scale)


def row_loss_fwd(
    x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings, dx: Tensor | None = None,
    g: Tensor | None = None, metrics: bool = False, by_probability: bool = False,
    classes: int | None = None,
) -> Rows:  # fmt: skip
    """Loss and statistics of each row of x [M, V]; with `dx` [M, V], which may be x, also the
    gradient of sum(loss * g), g [M] or 0-d, times the probability of the target `by_probability`.

    log_prob is there for `metrics` and `by_probability`, argmax for `metrics`. Where x and dx have
    more columns than `classes`, V is these, and the others may be read and overwritten.
    """
    if not use_kernels(x):
        x, dx = x[:, :classes], None if dx is None else dx[:, :classes]
        return row_loss_fwd_torch(x, target, weight, settings, dx, g, metrics, by_probability)
    M, width = x.shape
    V = width if classes is None else classes
    acc = torch.promote_types(x.dtype, torch.float32)
    rows = empty_rows(M, x, metrics, by_probability)
    if M:
        pairs = _in_pairs(x)
        block_v, warps = _config(V, dx is not None, pairs and weight is None and not metrics)
        launch(
            _row_loss_fwd_kernel, (M,),
            x, target, weight, _mean(weight, acc), *rows, dx, g,
            x.stride(0), 0 if dx is None else dx.stride(0), _stride(g), V, width,
            *_runtime(settings), num_warps=warps,
            BY_PROBABILITY=by_probability and dx is not None, BLOCK_V=block_v, PAIRS=pairs,
            RAGGED=width > V,
        )  # fmt: skip
    return rows


def row_loss_bwd(
    x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings, rows: Rows, dx: Tensor,
    g: Tensor, classes: int | None = None,
) -> None:  # fmt: skip
    """Writes the gradient of sum(loss * g) into dx [M, V], which may be x; g is [M] or 0-d,
    `classes` as in `row_loss_fwd`.
    """
    if not use_kernels(x):
        x, dx = x[:, :classes], dx[:, :classes]
        return row_loss_bwd_torch(x, target, weight, settings, rows, dx, g)
    M, width = x.shape
    if M:
        V = width if classes is None else classes
        block_v = _config(V, False)[0]
        launch(
            _row_loss_bwd_kernel, (M * ceil_div(V, block_v),),
            x, target, weight, _mean(weight, rows.lse.dtype), rows.lse, rows.rest, dx, g,
            x.stride(0), dx.stride(0), _stride(g), V, width, *_runtime(settings),
            num_warps=8, BLOCK_V=block_v, RAGGED=width > V,
        )  # fmt: skip
    return None


def _in_pairs(x: Tensor) -> bool:
    """Whether x may be read as 4-byte integers, two bfloat16 each: not in a traced graph, which
    knows no addresses, and memory of others may begin anywhere.
    """
    known = x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    return known and not (x.shape[1] % 2 or x.stride(0) % 2 or x.data_ptr() % 4)


def _mean(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.mean(dtype=dtype)


def _stride(g: Tensor | None) -> int:
    return g.stride(0) if g is not None and g.ndim else 0
