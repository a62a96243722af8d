"""A small op in the form of ours, for the tests of the suite: y = (x - mean(x)) * w over rows.

x, y [M, N]; w [N]; mean [M];  g = dy * w;  dx = g - mean(g);  dw = sum_rows(dy * (x - mean))
"""

import torch
from liger_core.device import use_kernels
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch.autograd.function import once_differentiable

PROGRAMS = 3


def center_ref(x, weight, *, negate=False):
    acc = torch.promote_types(x.dtype, torch.float32)
    y = (x.to(acc) - x.to(acc).mean(-1, keepdim=True)) * weight.to(acc)
    return (-y if negate else y).to(x.dtype)


@triton.jit
def _center_fwd_kernel(X, W, Y, MEAN, stride_x, N, NEGATE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    x = tl.load(X + row * stride_x + cols, mask=mask, other=0.0).to(MEAN.dtype.element_ty)
    mean = tl.sum(x, axis=0) / N
    tl.store(MEAN + row, mean)
    y = (x - mean) * tl.load(W + cols, mask=mask, other=0.0)
    if NEGATE:
        y = -y
    tl.store(Y + row * N + cols, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def _center_bwd_kernel(
    X, W, DY, DX, MEAN, PARTIALS, stride_x, stride_dy, M, N,
    NEGATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0).to(MEAN.dtype.element_ty)
    dw = tl.zeros((BLOCK,), dtype=MEAN.dtype.element_ty)
    for i in range(tl.program_id(0), M, tl.num_programs(0)):
        row = i.to(tl.int64)
        x = tl.load(X + row * stride_x + cols, mask=mask, other=0.0)
        dy = tl.load(DY + row * stride_dy + cols, mask=mask, other=0.0).to(MEAN.dtype.element_ty)
        if NEGATE:
            dy = -dy
        g = dy * w
        dx = g - tl.sum(g, axis=0) / N
        tl.store(DX + row * N + cols, dx.to(DX.dtype.element_ty), mask=mask)
        dw += dy * (x - tl.load(MEAN + row))
    if PARTIALS is not None:
        tl.store(PARTIALS + tl.program_id(0).to(tl.int64) * N + cols, dw, mask=mask)


class CenterFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, negate):
        M, N = x.shape
        y = torch.empty((M, N), dtype=x.dtype, device=x.device)
        acc = torch.promote_types(x.dtype, torch.float32)
        mean = torch.empty(M, dtype=acc, device=x.device)
        if M:
            block = triton.next_power_of_2(N)
            constants = {"NEGATE": negate, "BLOCK": block}
            launch(_center_fwd_kernel, (M,), x, weight, y, mean, x.stride(0), N, **constants)
        ctx.save_for_backward(x, weight, mean)
        ctx.negate = negate
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, mean = ctx.saved_tensors
        dy = dy.contiguous()
        M, N = x.shape
        dx = torch.empty((M, N), dtype=x.dtype, device=x.device)
        need_dw = ctx.needs_input_grad[1]
        partials = (
            torch.zeros((PROGRAMS, N), dtype=mean.dtype, device=x.device) if need_dw else None
        )
        if M:
            launch(
                _center_bwd_kernel, (min(PROGRAMS, M),),
                x, weight, dy, dx, mean, partials, x.stride(0), dy.stride(0), M, N,
                NEGATE=ctx.negate, BLOCK=triton.next_power_of_2(N),
            )  # fmt: skip
        return dx, None if partials is None else partials.sum(0).to(weight.dtype), None


def center(x, weight, *, negate=False):
    if x.ndim != 2 or weight.shape != x.shape[1:]:
        shapes = tuple(x.shape), tuple(weight.shape)
        raise ValueError(f"center: x and weight must be [M, N] and [N], got {shapes}")
    if not use_kernels(x):
        return center_ref(x, weight, negate=negate)
    x = x if x.stride(-1) == 1 else x.contiguous()
    return CenterFunction.apply(x, weight.contiguous(), negate)
