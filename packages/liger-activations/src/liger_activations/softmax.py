"""Softmax over one dimension.

    y = exp(x - max(x)) / sum(exp(x - max(x)))

A row of up to 16384 columns stays in registers. A wider one is read twice: once for a running
maximum and sum, then from the last tile to the first, most of which is still in the cache; in the
backward, y of up to 32768 columns stays and only dy is read again. The kernel computes in fp32
(fp64 for fp64 results) and rounds once. Only y is kept for the backward.

    x, y [M, N]; M rows, N columns
    dx = y * (dy - sum(y * dy))

Source: torch.nn.functional.softmax; Milakov and Gimelshein 2018, arXiv:1805.02867 for the running
sum.
"""

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import num_sms, use_kernels
from liger_core.kernels import as_rows, ceil_div, power_of_2, specialize
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

__all__ = ["Softmax", "softmax", "softmax_ref"]

LOG2_E = tl.constexpr(1.4426950408889634)


def softmax_ref(x: Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    # a dtype that is named is also what autocast returns
    return torch.softmax(x, dim, dtype=x.dtype if dtype is None else dtype)


@triton.jit
def _acc(y):
    """y in the dtype of sums."""
    return y if y.dtype == tl.float64 else y.to(tl.float32)


@triton.jit
def _softmax_fwd_kernel(X, Y, stride_x, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.arange(0, BLOCK_N)[None, :]
    inside = (rows < M) & (cols < N)

    x = tl.load(X + rows * stride_x + cols, mask=inside, other=float("-inf"))
    x = _acc(x.to(Y.dtype.element_ty))
    e = tl.exp2((x - tl.max(x, axis=1, keep_dims=True)) * LOG2_E)
    y = e * (1.0 / tl.sum(e, axis=1, keep_dims=True))
    tl.store(Y + rows * N + cols, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def _finite(m):
    """What to subtract from x: a maximum over nothing but -inf leaves the sum at zero."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _softmax_wide_fwd_kernel(X, Y, stride_x, M, N, BLOCK_N: tl.constexpr):
    acc: tl.constexpr = tl.float64 if Y.dtype.element_ty == tl.float64 else tl.float32
    # groups of eight columns belong to one thread: no exchange between threads in the loop
    groups = tl.arange(0, BLOCK_N // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    for row in range(tl.program_id(0), M, tl.num_programs(0)):
        x_row = X + tl.cast(row, tl.int64) * stride_x
        m = tl.full((BLOCK_N // 8,), float("-inf"), acc)
        total = tl.zeros((BLOCK_N // 8,), acc)
        for start in range(0, N, BLOCK_N):
            x = tl.load(x_row + start + groups, mask=start + groups < N, other=float("-inf"))
            x = x.to(Y.dtype.element_ty).to(acc)
            m_new = tl.maximum(m, tl.max(x, axis=1))
            reference = _finite(m_new)
            total *= tl.exp2((m - reference) * LOG2_E)
            total += tl.sum(tl.exp2((x - reference[:, None]) * LOG2_E), axis=1)
            m = m_new
        reference = _finite(tl.max(m, axis=0))
        scale = 1.0 / tl.sum(total * tl.exp2((m - reference) * LOG2_E), axis=0)

        # last tile first: it is the one most likely still in the cache
        for back in range(0, N, BLOCK_N):
            cols = (N - 1) // BLOCK_N * BLOCK_N - back + tl.arange(0, BLOCK_N)
            x = tl.load(
                x_row + cols, mask=cols < N, other=float("-inf"), eviction_policy="evict_first"
            )
            y = tl.exp2((x.to(Y.dtype.element_ty).to(acc) - reference) * LOG2_E) * scale
            tl.store(
                Y + tl.cast(row, tl.int64) * N + cols,
                y.to(Y.dtype.element_ty),
                mask=cols < N,
                eviction_policy="evict_first",
            )


@triton.jit
def _softmax_bwd_kernel(Y, DY, DX, stride_dy, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.arange(0, BLOCK_N)[None, :]
    inside = (rows < M) & (cols < N)

    y = _acc(tl.load(Y + rows * N + cols, mask=inside, other=0.0))
    dy_at = DY + rows * stride_dy + cols
    dy = _acc(tl.load(dy_at, mask=inside, other=0.0))
    total = tl.sum(y * dy, axis=1, keep_dims=True)
    if BLOCK_N > 16384:
        # registers hold y alone; the other policy keeps the two loads apart
        dy = _acc(tl.load(dy_at, mask=inside, other=0.0, eviction_policy="evict_first"))
    dx = y * (dy - total)
    tl.store(DX + rows * N + cols, dx.to(DX.dtype.element_ty), mask=inside)


@triton.jit
def _softmax_wide_bwd_kernel(Y, DY, DX, stride_dy, M, N, BLOCK_N: tl.constexpr):
    acc: tl.constexpr = tl.float64 if Y.dtype.element_ty == tl.float64 else tl.float32
    for row in range(tl.program_id(0), M, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * N
        dy_row = DY + tl.cast(row, tl.int64) * stride_dy
        products = tl.zeros((BLOCK_N,), acc)
        for start in range(0, N, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            y = _acc(tl.load(Y + at + cols, mask=cols < N, other=0.0))
            products += y * _acc(tl.load(dy_row + cols, mask=cols < N, other=0.0))
        total = tl.sum(products, axis=0)

        for back in range(0, N, BLOCK_N):
            cols = (N - 1) // BLOCK_N * BLOCK_N - back + tl.arange(0, BLOCK_N)
            y = tl.load(Y + at + cols, mask=cols < N, other=0.0, eviction_policy="evict_first")
            dy = tl.load(dy_row + cols, mask=cols < N, other=0.0, eviction_policy="evict_first")
            dx = (_acc(y) * (_acc(dy) - total)).to(DX.dtype.element_ty)
            tl.store(DX + at + cols, dx, mask=cols < N, eviction_policy="evict_first")


# bytes of rows in flight an SM that the cache holds between the two readings of a row
_IN_FLIGHT = 1 << 19


def _config(x: Tensor, operands: int) -> tuple[int, dict[str, int]]:
    """Programs for `operands` tensors like x [M, N]; warps and sizes of one.

    A tile has 2048 elements or is one row, with 16 to 32 elements of all operands a thread where 16
    warps allow it. Without BLOCK_M a row takes several tiles.
    """
    (M, N), itemsize = x.shape, x.element_size()
    block_n = power_of_2(N)
    if block_n > (32768 if operands == 2 == itemsize else 16384):
        resident = max(1, _IN_FLIGHT // (N * itemsize * operands))
        block_n = 8192 if N <= 65536 else 16384
        warps = 32 if operands == 2 and N > 65536 else 16
        return min(M, num_sms(x) * resident), {"num_warps": warps, "BLOCK_N": block_n}
    block_m = max(1, 2048 // max(block_n, 16))
    warps = min(max(block_m * block_n * operands // 1024, 4), 16)
    return ceil_div(M, block_m), {"num_warps": warps, "BLOCK_M": block_m, "BLOCK_N": block_n}


def softmax_fwd(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [..., N] -> y [..., N] contiguous, of `dtype`."""
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if y.numel():
        x = as_rows(x)
        programs, config = _config(x, 1)
        kernel = _softmax_fwd_kernel if "BLOCK_M" in config else _softmax_wide_fwd_kernel
        launch(kernel, (programs,), x, y, x.stride(0), *x.shape, **config)
    return y


def softmax_bwd(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dy, y [..., N], y contiguous -> dx [..., N] contiguous, of `dtype`."""
    dx = torch.empty(y.shape, dtype=dtype, device=y.device)
    if y.numel():
        dy = as_rows(dy)
        programs, config = _config(dy, 2)
        kernel = _softmax_bwd_kernel if "BLOCK_M" in config else _softmax_wide_bwd_kernel
        launch(kernel, (programs,), y, dy, dx, dy.stride(0), *dy.shape, **config)
    return dx


class SoftmaxFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dtype):
        y = softmax_fwd(x, dtype)
        ctx.save_for_backward(y)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return softmax_bwd(dy, y, ctx.dtype), None


def softmax(x: Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax of one dimension, of any size: y = exp(x) / sum(exp(x)).

    A -inf gives 0. A row that has a NaN, a +inf, or nothing but -inf is NaN, as in torch.

    Args:
        x: at least one dimension; float16, bfloat16, float32 or float64; any strides.
        dim: what is normalised. Where it is not contiguous in memory, x and dy are copied.
        dtype: of the result, and what x is rounded to first; None keeps that of x.

    Returns:
        The shape of x. Through the kernels it is contiguous when `dim` is the last; otherwise `dim`
        is what is contiguous. Formed in fp32 (fp64 for a float64 result) and rounded once.

    Peak memory: 2 M N itemsize bytes for M rows of N: y, which is kept for the backward, and dx.

    Raises:
        ValueError: no such dimension.
        TypeError: a dtype that is not floating point, a `dim` that is no integer.

    Source: torch.nn.functional.softmax.
    """
    _check(x, dim, dtype)
    if not use_kernels(x):
        return softmax_ref(x, dim, dtype=dtype)
    dtype = x.dtype if dtype is None else dtype
    specialize(x.shape[dim])
    if dim in (-1, x.ndim - 1):
        return SoftmaxFunction.apply(x, dtype)
    return SoftmaxFunction.apply(x.movedim(dim, -1), dtype).movedim(-1, dim)


def _check(x: Tensor, dim: int, dtype: torch.dtype | None) -> None:
    if not isinstance(dim, int):
        raise TypeError(f"softmax: dim must be an integer, not {dim!r}")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"softmax: x {tuple(x.shape)} has no dimension {dim}")
    if not x.is_floating_point() or (dtype is not None and not dtype.is_floating_point):
        raise TypeError(f"softmax: x {x.dtype} and dtype {dtype} must be floating point")


class Softmax(torch.nn.Softmax):
    """`torch.nn.Softmax` on `softmax`; the dimension defaults to the last."""

    dim: int

    def __init__(self, dim: int = -1):
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        return softmax(x, self.dim)
