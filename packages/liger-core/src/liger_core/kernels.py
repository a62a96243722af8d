"""Device functions and small kernels that several ops need."""

import torch
from torch import Tensor

from .device import num_sms, use_kernels
from .lang import tl, triton
from .launch import launch

__all__ = [
    "as_rows",
    "ceil_div",
    "column_sum",
    "log2",
    "power_of_2",
    "scale_",
    "specialize",
    "sum_partials",
    "tanh",
]


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up. Triton's own costs microseconds on the host."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n, 1 for n < 1."""
    return 1 << max(n - 1, 0).bit_length()


def specialize(*sizes: int) -> None:
    """Make constants of traced sizes. A size that chooses the tiles of a kernel becomes one anyway,
    but torch 2.11 cannot trace an autograd function in which it does.
    """
    for size in sizes:
        size.bit_length()


def as_rows(x: Tensor) -> Tensor:
    """x [..., N] as [M, N] with unit inner stride: a view where the strides allow it."""
    x = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def tanh(x):
    """tanh(x) = 1 - 2 / (1 + e^(2x)) with one exp2; its series near 0, where that cancels. fp32 to
    about 3e-7, relative.
    """
    t = 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.885390081777927))
    if x.dtype == tl.float32:
        s = x * x
        series = x * (
            1.0 + s * (-0.33333334 + s * (0.13333334 + s * (-0.05396825 + s * 0.021869488)))
        )
        t = tl.where(s < 0.09, series, t)
    return t


@triton.jit
def log2(x):
    """log2(x) of a normal, positive x, fp32 to 3e-7, relative. tl.log2 takes more instructions,
    since it also knows zero, denormal numbers and infinity.
    """
    if x.dtype == tl.float32:
        # x = 2^n m, 2/3 <= m < 4/3
        bits = x.to(tl.int32, bitcast=True)
        n = (bits - 0x3F2AAAAB) >> 23
        r = (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0
        q = 0.24686217 + r * -0.22167987
        q = 0.28558204 + r * (-0.23689182 + r * q)
        q = 0.4809655 + r * (-0.36078373 + r * q)
        return n.to(tl.float32) + r * (1.4426948 + r * (-0.7213466 + r * q))
    else:
        return tl.log2(x)


@triton.jit
def _sum_partials_kernel(PARTIALS, OUT, P, N, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = cols < N
    total = tl.zeros((BLOCK_P, BLOCK_N), dtype=PARTIALS.dtype.element_ty)
    for start in range(0, P, BLOCK_P):
        rows = start + tl.arange(0, BLOCK_P)
        at = (group * P + rows[:, None]) * N + cols[None, :]
        total += tl.load(PARTIALS + at, mask=(rows < P)[:, None] & mask[None, :], other=0.0)

    out = tl.sum(total, axis=0).to(OUT.dtype.element_ty)
    tl.store(OUT + group * N + cols, out, mask=mask)


def sum_partials(
    partials: Tensor, dtype: torch.dtype, shape: tuple[int, ...] | None = None
) -> Tensor:
    """Sum over the last dimension but one in a fixed order, in the partials' dtype, rounded once:
    [..., P, N] contiguous -> [..., N] of `dtype`, or of that `shape` with as many elements.
    """
    *groups, P, N = partials.shape
    out = torch.empty(shape or (*groups, N), dtype=dtype, device=partials.device)
    block_n = 16 if N < 2048 else 32 if N < 16384 else 128
    launch(
        _sum_partials_kernel, (out.numel() // N, ceil_div(N, block_n)),
        partials, out, P, N,
        num_warps=4, BLOCK_P=64, BLOCK_N=block_n,
    )  # fmt: skip
    return out


@triton.jit
def _column_partials_kernel(
    X, PARTIALS, stride, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=PARTIALS.dtype.element_ty)
    for start in range(tl.program_id(1) * BLOCK_M, M, tl.num_programs(1) * BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
        x = tl.load(X + rows * stride + cols, mask=(rows < M) & (cols < N), other=0.0)
        total += x.to(total.dtype)
    at = tl.program_id(1).to(tl.int64) * N + cols
    tl.store(PARTIALS + at, tl.sum(total, axis=0), mask=cols < N)


def column_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.sum(0, dtype=dtype) of [M, N], summed in fp32 (fp64 for fp64) in a fixed order: [N].

    Torch's own takes a workspace of 1 MiB an SM, this one 4 KiB.
    """
    if not use_kernels(x) or not x.numel():
        return x.sum(0, dtype=dtype)
    x = as_rows(x)
    M, N = x.shape
    block_m, block_n = 16, 256
    blocks = ceil_div(N, block_n)
    P = min(ceil_div(4 * num_sms(x), blocks), ceil_div(M, block_m))
    partials = x.new_empty((P, N), dtype=torch.promote_types(x.dtype, torch.float32))
    launch(
        _column_partials_kernel, (blocks, P), x, partials, x.stride(0), M, N,
        num_warps=4, BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip
    return sum_partials(partials, dtype)


@triton.jit
def _scale_kernel(X, FACTOR, n, BLOCK: tl.constexpr):
    acc = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32
    factor = tl.load(FACTOR).to(acc)
    if factor == 1.0:
        return
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        x = tl.load(X + at, mask=at < n)
        tl.store(X + at, (x.to(acc) * factor).to(X.dtype.element_ty), mask=at < n)


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply a contiguous x in place by a 0-d tensor, without asking the device for it: a factor
    of 1 costs nothing.
    """
    if not use_kernels(x):
        return x.mul_(factor) if x.is_meta or factor != 1 else x
    if x.numel():
        programs = min(8 * num_sms(x), ceil_div(x.numel(), 4096))
        launch(_scale_kernel, (programs,), x, factor, x.numel(), num_warps=8, BLOCK=4096)
    return x
