"""The kernel pair under RMSNorm and LayerNorm, with or without a residual added first.

    s = x + residual, rounded to its dtype;  y = xhat * (w + offset) + b
    rms:    xhat = s * rstd,           rstd = 1 / sqrt(mean(s^2) + eps)
    layer:  xhat = (s - mean) * rstd,  rstd = 1 / sqrt(mean((s - mean)^2) + eps)

w and b may differ between groups of consecutive rows (one group a sample: AdaLN). Statistics and
products are fp32, fp64 for fp64 inputs. A row is cut into equal tiles of a power of two, so that
few lanes lie beyond it. One of up to 32 KiB stays in registers; of a wider one all but the first
tiles are read again, and its backward takes two kernels: the means, then columns by rows.

    x, residual, s, y [M, N]; w, b [G, N] or none, row m has group m // T, T = M / G
    rstd, mean [M]; M rows, N columns, P programs a group
    g = dy * (w + offset);  c1 = mean(g * xhat);  c2 = mean(g) for layer, 0 for rms
    dx = dresidual = rstd * (g - c2 - xhat * c1) + ds
    dw = sum(dy * xhat), db = sum(dy), over the rows of a group
"""

from collections.abc import Sequence

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import num_sms
from liger_core.kernels import as_rows, ceil_div, power_of_2, sum_partials
from liger_core.launch import launch
from torch import Tensor

from .row_norm_kernels import (
    _row_norm_bwd_kernel,
    _row_norm_fwd_kernel,
    _wide_bwd_kernel,
    _wide_means_kernel,
)

__all__ = ["RowNormFunction", "row_norm_bwd", "row_norm_fwd"]

# eps, offset, cast, whether the mean is subtracted
Form = tuple[float, float, str, bool]
# bytes that a row may have to stay in registers
_WIDEST = 32768


def _cut(N: int) -> tuple[int, int]:
    """Number and columns of the tiles of a row: 1 of 4096, 5 of 1024, 7 of 2048.

    A tile with few idle lanes is faster than several, up to 8192.
    """
    whole = power_of_2(N)
    if N <= 1024 or (whole <= 8192 and 4 * N > 3 * whole):
        return 1, whole
    block_n = whole // 8
    tiles = ceil_div(N, block_n)
    # 6 tiles are 3 of twice the width
    twos = tiles & -tiles
    return tiles // twos, block_n * twos


def _fwd_config(N: int, itemsize: int, operands: int) -> dict[str, int]:
    """2048 elements or one row a program; of a wide row the first tiles are held."""
    if N * itemsize > _WIDEST:
        tiles, block_n = ceil_div(N * itemsize, _WIDEST // 2), _WIDEST // 2 // itemsize
        held, block_m, warps = min(tiles, 4 // operands), 1, 16
    else:
        tiles, block_n = _cut(N)
        held, block_m = tiles, max(1, 2048 // (tiles * block_n))
        few = 2 if block_n <= 1024 else 4
        warps = few if tiles > 1 else min(max(block_m * block_n // 1024, 4), 16)
    return {
        "num_warps": warps, "HELD": held, "TILES": tiles, "BLOCK_M": block_m, "BLOCK_N": block_n,
    }  # fmt: skip


def _bwd_config(N: int, itemsize: int, operands: int, sums: int) -> tuple[int, dict[str, int]]:
    """Programs an SM; warps, sizes and stages of one.

    Stages beyond the first hold the tiles of the `operands` that are read in shared memory, of
    which every target lends 128 KiB.
    """
    tiles, block_n = _cut(N)
    lanes = tiles * block_n
    two = lanes <= 5120 and (tiles > 1 or sums == 2)
    block_m = max(1, (4096 if two else 8192) // max(lanes, 64))
    if tiles > 1:
        block_m = power_of_2(block_m + 1) // 2
    warps = 4 if two else 16 if block_m > 4 else 8
    stages = 1 + 2**17 // (block_m * lanes * itemsize * operands)
    return 2 if two else 1, {
        "num_warps": warps, "TILES": tiles, "BLOCK_M": block_m, "BLOCK_N": block_n,
        "STAGES": max(1, min(stages, 3)),
    }  # fmt: skip


def _wide_bwd_config(itemsize: int, sums: int) -> tuple[int, dict[str, int], dict[str, int]]:
    """Programs of the second kernel that an SM holds at once; those of the means and of that."""
    means = {"num_warps": 8, "BLOCK_N": _WIDEST // 4 // itemsize}
    return 4 if sums == 2 else 7, means, {"num_warps": 4, "BLOCK_M": 2, "BLOCK_N": 1024}


def row_norm_fwd(
    x: Tensor, residual: Tensor | None, w: Tensor | None, b: Tensor | None, form: Form
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """x, residual [..., N]; w, b [G, N] or [N] -> y, s, mean, rstd; s, mean None if not needed."""
    eps, offset, cast, layer = form
    # the dtype that the statistics see
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = torch.promote_types(dtype, w.dtype) if w is not None and cast == "before" else dtype
    y = torch.empty_like(x, dtype=out, memory_format=torch.contiguous_format)
    s = None if residual is None else torch.empty_like(y, dtype=dtype)
    rows, more = as_rows(x), None if residual is None else as_rows(residual)
    M, N = rows.shape
    rstd = torch.empty(M, dtype=torch.promote_types(dtype, torch.float32), device=x.device)
    mean = torch.empty_like(rstd) if layer else None
    if M:
        G = _groups(w, b)
        config = _fwd_config(N, dtype.itemsize, 1 if more is None else 2)
        launch(
            _row_norm_fwd_kernel, (ceil_div(M, config["BLOCK_M"]),),
            rows, more, w, b, s, y, mean, rstd, rows.stride(0),
            0 if more is None else more.stride(0), M, N, M // G, eps, offset or None,
            CAST=cast, GROUPED=G > 1, **config,
        )  # fmt: skip
    return y, s, mean, rstd


def row_norm_bwd(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    form: Form,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dy, ds, s [..., N] -> dx [..., N] contiguous, dw, db as w and b; None where not in `need`."""
    dx = torch.empty_like(s, memory_format=torch.contiguous_format) if need[0] else None
    wanted = [t for t, n in ((w, need[1]), (b, need[2])) if n and t is not None]
    s, dy, ds = as_rows(s), as_rows(dy), None if ds is None else as_rows(ds)
    if s.shape[0]:
        # rows with one w and b
        T = s.shape[0] // _groups(w, b)
        run = _wide_bwd if s.shape[1] * s.element_size() > _WIDEST else _narrow_bwd
        sums = _total(run(dy, ds, dx, s, w, mean, rstd, form, T, wanted, need), wanted)
    else:
        sums = [torch.zeros_like(t) for t in wanted]
    return dx, sums[0] if need[1] else None, sums[-1] if need[2] else None


def _narrow_bwd(dy, ds, dx, s, w, mean, rstd, form, T, wanted, need):
    (M, N), (_, offset, cast, _) = s.shape, form
    per_sm, config = _bwd_config(N, s.element_size(), 2 if ds is None else 3, len(wanted))
    P = _programs(per_sm * num_sms(s), M // T, T, config["BLOCK_M"], wanted)
    sums = _empty_sums(wanted, M // T, P, s, rstd)
    launch(
        _row_norm_bwd_kernel, (M // T * P,),
        s, w, dy, ds, dx, mean, rstd, sums, s.stride(0), dy.stride(0),
        0 if ds is None else ds.stride(0), N, T, P, offset or None,
        CAST=cast, DW=need[1], DB=need[2], **config,
    )  # fmt: skip
    return sums


def _wide_bwd(dy, ds, dx, s, w, mean, rstd, form, T, wanted, need):
    (M, N), (_, offset, cast, _) = s.shape, form
    per_sm, means, config = _wide_bwd_config(s.element_size(), len(wanted))
    blocks = ceil_div(N, config["BLOCK_N"])
    # all programs at once: they walk the rows together, the last of which are in L2
    P = _programs(per_sm * num_sms(s) // blocks, M // T, T, config["BLOCK_M"], wanted)
    sums = _empty_sums(wanted, M // T, P, s, rstd)
    c1, c2 = torch.empty((2, M), dtype=rstd.dtype, device=s.device)
    strides = s.stride(0), dy.stride(0), 0 if ds is None else ds.stride(0)
    if dx is not None:
        launch(
            _wide_means_kernel, (M,),
            s, w, dy, mean, rstd, c1, c2, *strides[:2], N, T, offset or None, **means,
        )  # fmt: skip
    launch(
        _wide_bwd_kernel, (blocks * (M // T) * P,),
        s, w, dy, ds, dx, mean, rstd, c1, c2, sums, *strides, N, T, P, offset or None,
        CAST=cast, DW=need[1], DB=need[2], **config,
    )  # fmt: skip
    return sums


def _programs(most: int, G: int, T: int, block_m: int, wanted: list[Tensor]) -> int:
    """Of a group of T rows, where `most` fit the device."""
    # a group's own sums have the same bits however many others there are
    if wanted and wanted[0].ndim > 1:
        return max(1, min(most, ceil_div(T, 64 * block_m)))
    return max(1, min(ceil_div(most, G), ceil_div(T, block_m)))


def _empty_sums(wanted: list[Tensor], G: int, P: int, s: Tensor, rstd: Tensor) -> Tensor | None:
    """[dw, then db; group; program; N]; the sums of a group's only program are the result."""
    if not wanted:
        return None
    dtype = rstd.dtype if P > 1 else _common(wanted, rstd.dtype)
    return rstd.new_empty((len(wanted) * G, P, s.shape[1]), dtype=dtype)


def _total(sums: Tensor | None, wanted: list[Tensor]) -> Sequence[Tensor]:
    """dw, db: partial sums [..., P, N] added up, as the `wanted` w, b."""
    if sums is None:
        return ()
    shape = wanted[0].shape if len(wanted) == 1 else (2, *wanted[0].shape)
    dtype = _common(wanted, sums.dtype)
    total = sums.view(shape) if sums.shape[1] == 1 else sum_partials(sums, dtype, shape)
    if len(wanted) == 1:
        return (total,)
    dw, db = total.unbind()
    return dw.to(wanted[0].dtype), db.to(wanted[1].dtype)


def _common(wanted: list[Tensor], other: torch.dtype) -> torch.dtype:
    """The dtype of all of `wanted`, or else `other`."""
    return wanted[0].dtype if wanted[0].dtype == wanted[-1].dtype else other


def _groups(w: Tensor | None, b: Tensor | None) -> int:
    either = w if w is not None else b
    return 1 if either is None or either.ndim == 1 else either.shape[0]


class RowNormFunction(torch.autograd.Function):
    """x, residual [..., N], w, b [N] or [G, N] -> y, or y and x + residual if there is one."""

    @staticmethod
    def forward(ctx, x, residual, w, b, form):
        w, b = [t if t is None else t.contiguous() for t in (w, b)]
        y, s, mean, rstd = row_norm_fwd(x, residual, w, b, form)
        ctx.save_for_backward(x if s is None else s, w, b, mean, rstd)
        ctx.given = form, x.dtype, None if residual is None else residual.dtype
        if s is not None and not any(ctx.needs_input_grad[:2]):
            ctx.mark_non_differentiable(s)
        return y if s is None else (y, s)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, ds=None):
        s, w, b, mean, rstd = ctx.saved_tensors
        form, dtype, dtype_r = ctx.given
        need_x, need_residual, need_w, need_b, _ = ctx.needs_input_grad
        need = need_x or need_residual, need_w, need_b
        dx, dw, db = row_norm_bwd(dy, ds, s, w, b, mean, rstd, form, need)
        if dtype_r is None or dx is None:
            return dx, None, dw, db, None
        dresidual = dx if dtype_r == dx.dtype else dx.to(dtype_r)
        dx = dx if dtype == dx.dtype else dx.to(dtype)
        return dx if need_x else None, dresidual if need_residual else None, dw, db, None
