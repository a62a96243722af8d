"""The kernel pair under RMSNorm and LayerNorm, with or without a residual added first.

    s = x + residual, rounded to its dtype;  y = xhat * (w + offset) + b
    rms:    xhat = s * rstd,           rstd = 1 / sqrt(mean(s^2) + eps)
    layer:  xhat = (s - mean) * rstd,  rstd = 1 / sqrt(mean((s - mean)^2) + eps)

w and b may differ between groups of consecutive rows (one group a sample: AdaLN). Statistics and
products are fp32, fp64 for fp64 inputs. A row of up to 32 KiB stays in registers; a wider one
is read again, and its backward takes two kernels: the means, then columns by rows.

    x, residual, s, y [M, N]; w, b [G, N] or none, row m has group m // T, T = M / G
    rstd, mean [M]; M rows, N columns, P programs a group
    g = dy * (w + offset);  c1 = mean(g * xhat);  c2 = mean(g) for layer, 0 for rms
    dx = dresidual = rstd * (g - c2 - xhat * c1) + ds
    dw = sum(dy * xhat), db = sum(dy), over the rows of a group
"""

import torch
from liger_core.device import num_sms
from liger_core.kernels import as_rows, ceil_div, power_of_2, sum_partials
from liger_core.launch import launch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .row_norm_kernels import (
    _row_norm_bwd_kernel,
    _row_norm_fwd_kernel,
    _wide_bwd_kernel,
    _wide_means_kernel,
)

__all__ = ["RowNormFunction", "row_norm_bwd", "row_norm_fwd"]

# bytes that a row may have to stay in registers
_WIDEST = 32768


def _fwd_config(N: int, itemsize: int) -> tuple[int, int, int]:
    """Rows and columns of a tile and warps: 2048 elements or one row, a wide one in pieces."""
    if N * itemsize > _WIDEST:
        return 1, _WIDEST // 2 // itemsize, 16
    block_n = power_of_2(N)
    block_m = max(1, 2048 // block_n)
    return block_m, block_n, min(max(block_m * block_n // 1024, 4), 16)


def _bwd_config(N: int, itemsize: int, operands: int, sums: int) -> tuple[int, int, int, int, int]:
    """Rows and columns of a tile, warps, stages, programs an SM.

    Stages beyond the first hold the tiles of the `operands` that are read in shared memory, of
    which every target lends 128 KiB.
    """
    block_n = power_of_2(N)
    two = sums == 2 and block_n <= 4096
    block_m = max(1, (4096 if two else 8192) // max(block_n, 64))
    warps = 4 if two else 16 if block_m > 4 else 8
    stages = 1 + 2**17 // (block_m * block_n * itemsize * operands)
    return block_m, block_n, warps, max(1, min(stages, 3)), 2 if two else 1


def row_norm_fwd(
    x: Tensor,
    residual: Tensor | None,
    w: Tensor | None,
    b: Tensor | None,
    eps: float,
    offset: float,
    cast: str,
    layer: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """x, residual [..., N]; w, b [G, N] or [N] -> y, s, mean, rstd; s, mean None if not needed."""
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
        block_m, block_n, warps = _fwd_config(N, dtype.itemsize)
        launch(
            _row_norm_fwd_kernel, (ceil_div(M, block_m),),
            rows, more, w, b, s, y, mean, rstd, rows.stride(0),
            0 if more is None else more.stride(0), M, N, M // G, eps, offset or None,
            num_warps=warps, CAST=cast, GROUPED=G > 1,
            TILES=ceil_div(N, block_n), BLOCK_M=block_m, BLOCK_N=block_n,
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
    offset: float,
    cast: str,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dy, ds, s [..., N] -> dx [..., N] contiguous, dw, db as w and b; None where not in `need`."""
    dx = torch.empty_like(s, memory_format=torch.contiguous_format) if need[0] else None
    wanted = [t for t, n in zip((w, b), need[1:], strict=True) if n and t is not None]
    s, dy = as_rows(s), as_rows(dy)
    ds = None if ds is None else as_rows(ds)
    if not s.shape[0]:
        sums = [torch.zeros_like(t) for t in wanted]
    else:
        sums = _launch_bwd(dy, ds, dx, s, w, mean, rstd, offset, cast, wanted, need, _groups(w, b))
    dw = sums.pop(0) if need[1] else None
    return dx, dw, sums.pop(0) if need[2] else None


def _launch_bwd(dy, ds, dx, s, w, mean, rstd, offset, cast, wanted, need, G):
    M, N = s.shape
    T, wide = M // G, N * s.element_size() > _WIDEST
    block_m, block_n, warps, stages, programs = _bwd_config(
        N, s.element_size(), 2 if ds is None else 3, len(wanted)
    )
    programs *= num_sms(s)
    if wide:
        block_m, block_n, warps = 4, 1024, 4
        programs = ceil_div(8 * num_sms(s), ceil_div(N, block_n))
    P = max(1, min(ceil_div(programs, G), ceil_div(T, block_m)))
    sums, dtype = None, rstd.dtype
    if wanted:
        dtype = wanted[0].dtype if wanted[0].dtype == wanted[-1].dtype else dtype
        # the sums of a group's only program are the result
        kind = rstd.dtype if P > 1 else dtype
        sums = torch.empty((len(wanted) * G, P, N), dtype=kind, device=s.device)
    strides = s.stride(0), dy.stride(0), 0 if ds is None else ds.stride(0)
    constants = {"CAST": cast, "DW": need[1], "DB": need[2]}
    if not wide:
        launch(
            _row_norm_bwd_kernel, (G * P,),
            s, w, dy, ds, dx, mean, rstd, sums, *strides, N, T, P, offset or None,
            num_warps=warps, **constants, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=stages,
        )  # fmt: skip
    else:
        c1, c2 = torch.empty((2, M), dtype=rstd.dtype, device=s.device)
        if dx is not None:
            launch(
                _wide_means_kernel, (M,),
                s, w, dy, mean, rstd, c1, c2, *strides[:2], N, T, offset or None,
                num_warps=16, BLOCK_N=_WIDEST // 2 // s.element_size(),
            )  # fmt: skip
        launch(
            _wide_bwd_kernel, (ceil_div(N, block_n), G * P),
            s, w, dy, ds, dx, mean, rstd, c1, c2, sums, *strides, N, T, P, offset or None,
            num_warps=warps, **constants, BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
    if sums is None:
        return []
    shape = wanted[0].shape if len(wanted) == 1 else (2, *wanted[0].shape)
    total = sums.view(shape) if P == 1 else sum_partials(sums, dtype, shape)
    if len(wanted) == 1:
        return [total]
    return [total[0].to(wanted[0].dtype), total[1].to(wanted[1].dtype)]


def _groups(w: Tensor | None, b: Tensor | None) -> int:
    either = w if w is not None else b
    return 1 if either is None or either.ndim == 1 else either.shape[0]


class RowNormFunction(torch.autograd.Function):
    """x, residual [..., N], w, b [N] or [G, N] -> y, or y and x + residual if there is one."""

    @staticmethod
    def forward(ctx, x, residual, w, b, eps, offset, cast, layer):
        w = w if w is None else w.contiguous()
        b = b if b is None else b.contiguous()
        y, s, mean, rstd = row_norm_fwd(x, residual, w, b, eps, offset, cast, layer)
        ctx.save_for_backward(x if s is None else s, w, b, mean, rstd)
        ctx.offset, ctx.cast = offset, cast
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        return y if s is None else (y, s)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, ds=None):
        s, w, b, mean, rstd = ctx.saved_tensors
        need_x, need_residual, need_w, need_b, *_ = ctx.needs_input_grad
        need = need_x or need_residual, need_w, need_b
        dx, dw, db = row_norm_bwd(dy, ds, s, w, b, mean, rstd, ctx.offset, ctx.cast, need)
        dtype, dtype_r = ctx.dtypes
        dresidual = dx.to(dtype_r) if dx is not None and need_residual else None
        dx = dx.to(dtype) if dx is not None and need_x else None
        return dx, dresidual, dw, db, None, None, None, None
