"""Squared ReLU.

    y = max(x, 0)^2

In fp32 (fp64 for fp64 inputs), rounded once. Only x is kept for the backward.

    x, y [M, N]; M rows, N columns
    dx = 2 * max(x, 0) * dy

Source: So et al. 2021, arXiv:2109.08668.
"""

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .pointwise import TILE, flat_rows

__all__ = ["ReLUSquared", "relu_squared", "relu_squared_ref"]


def relu_squared_ref(x: Tensor) -> Tensor:
    y = torch.nn.functional.relu(x)
    # square() is a power, which autocast computes in fp32
    return y * y


@triton.jit
def _relu_squared_fwd_kernel(X, Y, stride_x, stride_y, N, BLOCK_N: tl.constexpr):
    tiles = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    cols = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32

    x = tl.load(X + row * stride_x + cols, mask=cols < N, other=0.0).to(acc)
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(Y + row * stride_y + cols, (x * x).to(Y.dtype.element_ty), mask=cols < N)


@triton.jit
def _relu_squared_bwd_kernel(
    X, DY, DX, stride_x, stride_dy, stride_dx, N, BLOCK_N: tl.constexpr
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    cols = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32

    x = tl.load(X + row * stride_x + cols, mask=cols < N, other=0.0).to(acc)
    dy = tl.load(DY + row * stride_dy + cols, mask=cols < N, other=0.0).to(acc)
    # a bad dy does not pass where x is negative, as in torch
    dx = tl.where(x <= 0.0, 0.0, 2.0 * x * dy)
    tl.store(DX + row * stride_dx + cols, dx.to(DX.dtype.element_ty), mask=cols < N)


def relu_squared_fwd(x: Tensor) -> Tensor:
    """x [..., N] -> y of its shape, contiguous."""
    y = x.new_empty(x.shape)
    if y.numel():
        M, N, rows, strides = flat_rows(x, x, y)
        block_n, warps = TILE
        launch(
            _relu_squared_fwd_kernel, (M * ceil_div(N, block_n),),
            *rows, *strides, N, num_warps=warps, BLOCK_N=block_n,
        )  # fmt: skip
    return y


def relu_squared_bwd(dy: Tensor, x: Tensor) -> Tensor:
    """dy, x [..., N] -> dx of their shape, contiguous."""
    dx = x.new_empty(x.shape)
    if dx.numel():
        M, N, rows, strides = flat_rows(x, x, dy, dx)
        block_n, warps = TILE
        launch(
            _relu_squared_bwd_kernel, (M * ceil_div(N, block_n),),
            *rows, *strides, N, num_warps=warps, BLOCK_N=block_n,
        )  # fmt: skip
    return dx


class ReLUSquaredFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return relu_squared_fwd(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return relu_squared_bwd(dy, *ctx.saved_tensors)


def relu_squared(x: Tensor) -> Tensor:
    """Squared ReLU: y = max(x, 0)^2, a NaN staying one.

    Args:
        x: of any shape and strides, float16, bfloat16, float32 or float64.

    Returns:
        A tensor of the shape and dtype of x. Peak memory: 2 elements for each of x, of the result
        and the gradient.

    Raises:
        TypeError: a dtype that is not floating point.

    Source: So et al. 2021, arXiv:2109.08668.
    """
    if not x.is_floating_point():
        raise TypeError(f"relu_squared: x {tuple(x.shape)} must be floating point, not {x.dtype}")
    if not use_kernels(x):
        return relu_squared_ref(x)
    return ReLUSquaredFunction.apply(x)


class ReLUSquared(torch.nn.Module):
    """`relu_squared` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return relu_squared(x)
