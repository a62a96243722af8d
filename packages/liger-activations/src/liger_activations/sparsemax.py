"""Sparsemax: the Euclidean projection of a row onto the simplex.

    y = max(x - tau, 0),    tau such that sum(y) = 1

Nothing is sorted. f(tau) = sum(max(x - tau, 0)) - 1 is convex and falls, in straight pieces, and is
not negative at max(x) - 1; Newton's steps from there,

    tau <- (sum of x over S - 1) / |S|,    S = {x > tau},

only rise, lose elements of S each time, and end where S stays. x is taken relative to the row's
maximum. The threshold of some of the elements is never too high, so most of the about ten steps are
taken on the maxima of groups of them, and the whole row needs two or three. A row of up to 16384
columns stays in registers; a wider one is read again for each of its steps, from the cache. The
kernel computes in fp32 (fp64 for fp64 inputs) and rounds once. Only y is kept for the backward.

    x, y [M, N]; M rows, N columns
    dx = dy - mean(dy over y > 0) where y > 0, and 0 elsewhere

Source: Martins and Astudillo 2016, arXiv:1602.02068; the steps: Michelot 1986,
doi:10.1007/BF00938486.
"""

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import num_sms, use_kernels
from liger_core.kernels import as_rows, ceil_div, power_of_2, specialize
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

__all__ = ["Sparsemax", "sparsemax", "sparsemax_ref"]


def sparsemax_ref(x: Tensor, dim: int = -1) -> Tensor:
    z = x.movedim(dim, -1).to(torch.promote_types(x.dtype, torch.float32))
    z = z - z.detach().amax(dim=-1, keepdim=True)
    top = z.detach().sort(dim=-1, descending=True).values
    total = top.cumsum(dim=-1)
    k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    size = (1 + k * top > total).sum(dim=-1, keepdim=True)
    tau = (total.gather(-1, (size - 1).clamp(min=0)) - 1) / size
    # not z > tau: of a NaN neither holds
    inside = ~(z.detach() <= tau)
    tau = (z.where(inside, 0.0).sum(dim=-1, keepdim=True) - 1) / inside.sum(dim=-1, keepdim=True)
    return (z - tau).where(inside, 0.0).to(x.dtype).movedim(-1, dim)


@triton.jit
def _acc(x):
    """x in the dtype of sums."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _step(k, total, tau):
    """tau after a step, given the size and the sum of S, and whether any row's rose.

    Rounding, and a part of the row whose own threshold is lower, must not take it down again, or
    the steps might not end. A NaN passes through and ends them.
    """
    # a tie of x and tau shows only if the quotient is rounded correctly
    step = (total - 1.0) / k if k.dtype == tl.float64 else tl.div_rn(total - 1.0, k)
    return tl.where(step <= tau, tau, step), tl.max((step > tau).to(tl.int32)) > 0


@triton.jit
def _solve(z, tau):
    """Steps from `tau`, for the rows of a tile, until none of their thresholds rises."""
    rising = tl.full((), 1, tl.int1)
    while rising:
        below = z <= tau
        k = tl.sum(tl.where(below, 0.0, 1.0).to(z.dtype), axis=1, keep_dims=True)
        total = tl.sum(tl.where(below, 0.0, z), axis=1, keep_dims=True)
        tau, rising = _step(k, total, tau)
    return tau


@triton.jit
def _project(z, tau, Y):
    """y in its dtype; fp16 would lose a small element of the support, and with it its gradient."""
    y = z - tau
    if Y.dtype.element_ty == tl.float16:
        # a comparison, since a maximum would lose a NaN
        y = tl.where(y < 5.9604644775390625e-08, 5.9604644775390625e-08, y)
    return tl.where(z <= tau, 0.0, y).to(Y.dtype.element_ty)


@triton.jit
def _sparsemax_fwd_kernel(X, Y, stride_x, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.arange(0, BLOCK_N)[None, :]
    inside = (rows < M) & (cols < N)

    x = _acc(tl.load(X + rows * stride_x + cols, mask=inside, other=float("-inf")))
    z = x - tl.max(x, axis=1, keep_dims=True)
    tau = tl.full((BLOCK_M, 1), -1.0, z.dtype)
    if BLOCK_N >= 1024:
        tau = _solve(tl.max(tl.reshape(z, (BLOCK_M, BLOCK_N // 8, 8)), axis=2), tau)
    tau = _solve(z, tau)
    tl.store(Y + rows * N + cols, _project(z, tau, Y), mask=inside)


@triton.jit
def _sparsemax_wide_fwd_kernel(X, Y, stride_x, M, N, BLOCK_N: tl.constexpr):
    acc: tl.constexpr = tl.float64 if Y.dtype.element_ty == tl.float64 else tl.float32
    for row in range(tl.program_id(0), M, tl.num_programs(0)):
        x_row = X + tl.cast(row, tl.int64) * stride_x
        m = tl.full((1, BLOCK_N), float("-inf"), acc)
        for start in range(0, N, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)[None, :]
            m = tl.maximum(m, tl.load(x_row + cols, mask=cols < N, other=float("-inf")).to(acc))
        top = tl.max(m, axis=1, keep_dims=True)
        tau = _solve(m - top, tl.full((1, 1), -1.0, acc))

        rising = tl.full((), 1, tl.int1)
        while rising:
            k = tl.zeros((1, BLOCK_N), acc)
            total = tl.zeros((1, BLOCK_N), acc)
            for start in range(0, N, BLOCK_N):
                cols = start + tl.arange(0, BLOCK_N)[None, :]
                z = tl.load(x_row + cols, mask=cols < N, other=float("-inf")).to(acc) - top
                k += tl.where(z <= tau, 0.0, 1.0)
                total += tl.where(z <= tau, 0.0, z)
            k = tl.sum(k, axis=1, keep_dims=True)
            tau, rising = _step(k, tl.sum(total, axis=1, keep_dims=True), tau)

        # last tile first: it is the one most likely still in the cache
        for back in range(0, N, BLOCK_N):
            cols = (N - 1) // BLOCK_N * BLOCK_N - back + tl.arange(0, BLOCK_N)[None, :]
            z = tl.load(x_row + cols, mask=cols < N, other=float("-inf")).to(acc) - top
            y = _project(z, tau, Y)
            tl.store(Y + tl.cast(row, tl.int64) * N + cols, y, mask=cols < N)


@triton.jit
def _sparsemax_bwd_kernel(Y, DY, DX, stride_dy, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.arange(0, BLOCK_N)[None, :]
    inside = (rows < M) & (cols < N)

    y = _acc(tl.load(Y + rows * N + cols, mask=inside, other=0.0))
    dy = _acc(tl.load(DY + rows * stride_dy + cols, mask=inside, other=0.0))
    k = tl.sum(tl.where(y == 0.0, 0.0, 1.0).to(dy.dtype), axis=1, keep_dims=True)
    mean = tl.sum(tl.where(y == 0.0, 0.0, dy), axis=1, keep_dims=True) / k
    dx = tl.where(y == 0.0, 0.0, dy - mean)
    tl.store(DX + rows * N + cols, dx.to(DX.dtype.element_ty), mask=inside)


@triton.jit
def _sparsemax_wide_bwd_kernel(Y, DY, DX, stride_dy, M, N, BLOCK_N: tl.constexpr):
    acc: tl.constexpr = tl.float64 if Y.dtype.element_ty == tl.float64 else tl.float32
    for row in range(tl.program_id(0), M, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * N
        dy_row = DY + tl.cast(row, tl.int64) * stride_dy
        k = tl.zeros((BLOCK_N,), acc)
        total = tl.zeros((BLOCK_N,), acc)
        for start in range(0, N, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            y = tl.load(Y + at + cols, mask=cols < N, other=0.0).to(acc)
            dy = tl.load(dy_row + cols, mask=cols < N, other=0.0).to(acc)
            k += tl.where(y == 0.0, 0.0, 1.0)
            total += tl.where(y == 0.0, 0.0, dy)
        mean = tl.sum(total, axis=0) / tl.sum(k, axis=0)

        for back in range(0, N, BLOCK_N):
            cols = (N - 1) // BLOCK_N * BLOCK_N - back + tl.arange(0, BLOCK_N)
            y = tl.load(Y + at + cols, mask=cols < N, other=0.0).to(acc)
            dy = tl.load(dy_row + cols, mask=cols < N, other=0.0).to(acc)
            dx = tl.where(y == 0.0, 0.0, dy - mean)
            tl.store(DX + at + cols, dx.to(DX.dtype.element_ty), mask=cols < N)


# bytes of rows in flight an SM that the cache holds between the readings of a row
_IN_FLIGHT = 1 << 18


def _config(x: Tensor, operands: int) -> tuple[int, int, int, int]:
    """(programs, rows, columns, warps) for `operands` tensors like x [M, N].

    A tile has 2048 elements or is one row, with 16 to 32 elements of all operands a thread where 16
    warps allow it. 0 rows: a row takes several tiles.
    """
    M, N = x.shape
    block_n = power_of_2(N)
    if block_n > 16384:
        resident = max(1, _IN_FLIGHT // (N * x.element_size() * operands))
        return min(M, num_sms(x) * resident), 0, 8192, 16
    block_m = max(1, 2048 // max(block_n, 16))
    warps = min(max(block_m * block_n * operands // 1024, 4), 16)
    return ceil_div(M, block_m), block_m, block_n, warps


def sparsemax_fwd(x: Tensor) -> Tensor:
    """x [..., N] -> y [..., N] contiguous."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = as_rows(x)
    programs, block_m, block_n, warps = _config(x, 1)
    if block_m:
        launch(
            _sparsemax_fwd_kernel, (programs,), x, y, x.stride(0), *x.shape,
            num_warps=warps, BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
    else:
        launch(
            _sparsemax_wide_fwd_kernel, (programs,), x, y, x.stride(0), *x.shape,
            num_warps=warps, BLOCK_N=block_n,
        )  # fmt: skip
    return y


def sparsemax_bwd(dy: Tensor, y: Tensor) -> Tensor:
    """dy, y [..., N], y contiguous -> dx [..., N] contiguous."""
    dx = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    if not y.numel():
        return dx
    dy = as_rows(dy)
    programs, block_m, block_n, warps = _config(dy, 2)
    if block_m:
        launch(
            _sparsemax_bwd_kernel, (programs,), y, dy, dx, dy.stride(0), *dy.shape,
            num_warps=warps, BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
    else:
        launch(
            _sparsemax_wide_bwd_kernel, (programs,), y, dy, dx, dy.stride(0), *dy.shape,
            num_warps=warps, BLOCK_N=block_n,
        )  # fmt: skip
    return dx


class SparsemaxFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = sparsemax_fwd(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return sparsemax_bwd(dy, y)


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """Sparsemax of one dimension, of any size: the point of the simplex nearest to x, y = max(x -
    tau, 0) with sum(y) = 1.

    A -inf gives 0. A row that has a NaN, a +inf, or nothing but -inf is NaN.

    Args:
        x: at least one dimension; float16, bfloat16, float32 or float64; any strides.
        dim: what is projected. Where it is not contiguous in memory, x and dy are copied.

    Returns:
        The shape and dtype of x. Through the kernels it is contiguous when `dim` is the last;
        otherwise `dim` is what is contiguous. Formed in fp32 (fp64 for float64) and rounded once,
        but fp16 rounds no element of the support to 0. At ties with tau the gradient is that of 0.

    Peak memory: 2 M N itemsize bytes for M rows of N: y, which is kept for the backward, and dx.

    Raises:
        ValueError: no such dimension, or one of size 0.
        TypeError: a dtype that is not floating point, a `dim` that is no integer.

    Source: Martins and Astudillo 2016, arXiv:1602.02068.
    """
    _check(x, dim)
    if not use_kernels(x):
        return sparsemax_ref(x, dim)
    specialize(x.shape[dim])
    if dim in (-1, x.ndim - 1):
        return SparsemaxFunction.apply(x)
    return SparsemaxFunction.apply(x.movedim(dim, -1)).movedim(-1, dim)


def _check(x: Tensor, dim: int) -> None:
    if not isinstance(dim, int):
        raise TypeError(f"sparsemax: dim must be an integer, not {dim!r}")
    if not -x.ndim <= dim < x.ndim or x.shape[dim] == 0:
        raise ValueError(f"sparsemax: x {tuple(x.shape)} has no dimension {dim}, or one of size 0")
    if not x.is_floating_point():
        raise TypeError(f"sparsemax: x {x.dtype} must be floating point")


class Sparsemax(torch.nn.Module):
    """`sparsemax` of a fixed dimension."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return sparsemax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
