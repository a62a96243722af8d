"""Dynamic Tanh, an elementwise stand-in for a norm.

    y = w * tanh(alpha * x) + b

alpha is one learned number, w and b are one per column. Everything is formed in fp32, fp64 for fp64
inputs, and rounded once. Only x is kept for the backward, which takes a program for a slab of
columns and every P-th tile of rows: the sums over rows stay in registers.

    x, y [M, N]; alpha [1]; w, b [N] or none; M rows, N columns, P programs a slab of columns
    t = tanh(alpha * x);  g = dy * (1 - t^2)
    dx = g * w * alpha;  dalpha = sum(g * w * x);  dw = sum_rows(dy * t);  db = sum_rows(dy)

Source: Zhu et al. 2025, arXiv:2503.10622.
"""

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import num_sms, use_kernels
from liger_core.kernels import as_rows, ceil_div, power_of_2, specialize, sum_partials, tanh
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .arguments import check_beside

__all__ = ["DyT", "dyt", "dyt_ref"]


def dyt_ref(x: Tensor, alpha: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    y = torch.tanh(alpha.to(acc) * x.to(acc))
    if weight is not None:
        y = y * weight.to(acc)
    if bias is not None:
        y = y + bias.to(acc)
    return y.to(x.dtype)


@triton.jit
def _tanh(u):
    t = tanh(u)
    if u.dtype == tl.float64:
        # Lambert's continued fraction near 0, where the quotient cancels
        s = u * u
        f = 1.0 + s / (3.0 + s / (5.0 + s / (7.0 + s / (9.0 + s / (11.0 + s / 13.0)))))
        t = tl.where(s < 0.09, u / f, t)
    return t


@triton.jit
def _slope(u):
    """1 - tanh(u)^2 = h (2 - h), h = 2 / (1 + e^2u), with all its digits where tanh is near 1 or
    -1. The compiler shares the exponential and the quotient with `tanh`.
    """
    e = tl.exp2(u * 2.885390081777927)
    h = 2.0 / (1.0 + e)
    return h * tl.where(u > 0.0, 2.0 - h, h * e)


@triton.jit
def _dyt_fwd_kernel(
    X, ALPHA, W, B, Y, stride_x, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    acc = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32
    slabs = tl.cdiv(N, BLOCK_N)
    rows = (tl.program_id(0) // slabs).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.program_id(0) % slabs * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask = (rows < M) & (cols < N)

    x = tl.load(X + rows * stride_x + cols, mask=mask, other=0.0).to(acc)
    y = _tanh(tl.load(ALPHA).to(acc) * x)
    if W is not None:
        y *= tl.load(W + cols, mask=cols < N, other=0.0).to(acc)
    if B is not None:
        y += tl.load(B + cols, mask=cols < N, other=0.0).to(acc)
    tl.store(Y + rows * N + cols, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def _dyt_bwd_kernel(
    X, ALPHA, W, DY, DX, DALPHA, DW, DB, stride_x, stride_dy, M, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    acc = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    alpha = tl.load(ALPHA).to(acc)
    w = 1.0
    if W is not None:
        w = tl.load(W + cols, mask=cols < N, other=0.0).to(acc)
    dalpha = tl.zeros((BLOCK_M, BLOCK_N), dtype=acc)
    dw = tl.zeros((BLOCK_M, BLOCK_N), dtype=acc)
    db = tl.zeros((BLOCK_M, BLOCK_N), dtype=acc)

    # pointers are carried: the tanh and its slope leave little room for address arithmetic
    step = tl.num_programs(1).to(tl.int64) * BLOCK_M
    rows = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    x_at, dy_at, at = X + rows * stride_x + cols, DY + rows * stride_dy + cols, rows * N + cols
    for _ in tl.range(tl.program_id(1), tl.cdiv(M, BLOCK_M), tl.num_programs(1), num_stages=STAGES):
        mask = (rows < M) & (cols < N)
        x = tl.load(x_at, mask=mask, other=0.0).to(acc)
        dy = tl.load(dy_at, mask=mask, other=0.0).to(acc)
        g = dy * _slope(alpha * x)
        if DX is not None:
            tl.store(DX + at, (g * (w * alpha)).to(DX.dtype.element_ty), mask=mask)
        if DALPHA is not None:
            dalpha += g * x
        if DW is not None:
            dw += dy * _tanh(alpha * x)
        if DB is not None:
            db += dy
        rows += step
        x_at += step * stride_x
        dy_at += step * stride_dy
        at += step * N

    program = tl.program_id(1).to(tl.int64)
    at_sum = program * N + cols
    if DALPHA is not None:
        at_alpha = program * tl.num_programs(0) + tl.program_id(0)
        tl.store(DALPHA + at_alpha, tl.sum(tl.sum(dalpha, axis=0, keep_dims=True) * w))
    if DW is not None:
        tl.store(DW + at_sum, tl.sum(dw, axis=0, keep_dims=True), mask=cols < N)
    if DB is not None:
        tl.store(DB + at_sum, tl.sum(db, axis=0, keep_dims=True), mask=cols < N)


def _config(N: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, warps: 8 elements a thread, in the layout that w and b have too,
    so that nothing moves between threads.
    """
    block_n = min(power_of_2(N), 1024)
    block_m = max(1, 256 // max(block_n, 32))
    return block_m, block_n, max(1, block_n // 256)


def dyt_fwd(x: Tensor, alpha: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x [..., N] -> y [..., N] contiguous."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = as_rows(x)
    M, N = rows.shape
    if M:
        block_m, block_n, warps = _config(N)
        # w and b are read once for four rows, whose loads are in flight together
        block_m *= 4
        launch(
            _dyt_fwd_kernel, (ceil_div(M, block_m) * ceil_div(N, block_n),),
            rows, alpha, weight, bias, y, rows.stride(0), M, N,
            num_warps=warps, BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
    return y


def dyt_bwd(
    dy: Tensor,
    x: Tensor,
    alpha: Tensor,
    weight: Tensor | None,
    bias_dtype: torch.dtype | None,
    need: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dy, x [..., N] -> dx [..., N] contiguous, dalpha, dw, db; None where `need` says no."""
    need_dx, need_dalpha, need_dw, need_db = need
    acc = torch.promote_types(x.dtype, torch.float32)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_dx else None
    x, dy = as_rows(x), as_rows(dy)
    M, N = x.shape
    block_m, block_n, warps = _config(N)
    slabs = ceil_div(N, block_n)
    # 16 warps an SM
    P = min(ceil_div(16 // warps * num_sms(x), slabs), ceil_div(M, block_m))
    dalphas = torch.empty((P * slabs, 1), dtype=acc, device=x.device) if need_dalpha else None
    # of the sums over rows that are asked for
    kinds = [weight.dtype] if need_dw and weight is not None else []
    kinds += [bias_dtype] if need_db and bias_dtype is not None else []
    sums = torch.empty((len(kinds), P, N), dtype=acc, device=x.device) if kinds else None
    if M:
        launch(
            _dyt_bwd_kernel, (slabs, P),
            x, alpha, weight, dy, dx, dalphas,
            sums[0] if sums is not None and need_dw else None,
            sums[-1] if sums is not None and need_db else None,
            x.stride(0), dy.stride(0), M, N,
            num_warps=warps, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=3,
        )  # fmt: skip
    dalpha = dw = db = None
    if dalphas is not None:
        dalpha = sum_partials(dalphas, alpha.dtype).view(alpha.shape)
    if sums is not None:
        totals = sum_partials(sums, kinds[0] if kinds[0] == kinds[-1] else acc)
        dw = totals[0].to(kinds[0]) if need_dw else None
        db = totals[-1].to(kinds[-1]) if need_db else None
    return dx, dalpha, dw, db


class DyTFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha, weight, bias):
        weight = weight if weight is None or weight.stride(0) == 1 else weight.contiguous()
        ctx.save_for_backward(x, alpha, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return dyt_fwd(x, alpha, weight, bias if bias is None else bias.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, alpha, weight = ctx.saved_tensors
        return dyt_bwd(dy, x, alpha, weight, ctx.bias_dtype, ctx.needs_input_grad)


def dyt(x: Tensor, alpha: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Dynamic Tanh: y = weight * tanh(alpha * x) + bias, element by element.

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        alpha: [1] or [], any of these dtypes: one number.
        weight: [N], any of these dtypes, or None for no scaling.
        bias: [N], any of these dtypes, or None for no shift.

    Returns:
        [..., N] in the dtype of x, formed in fp32 (fp64 for float64) and rounded once.

        Peak memory: y and dx, 2 M N itemsize bytes for M rows, and partial sums of dw and db, about
        32 KiB for each SM of the GPU.

    Raises:
        ValueError: shapes that do not fit, tensors on different devices.
        TypeError: a dtype that is not floating point.

    Source: Zhu et al. 2025, arXiv:2503.10622.
    """
    _check(x, alpha, weight, bias)
    if not use_kernels(x):
        return dyt_ref(x, alpha, weight, bias)
    return DyTFunction.apply(x, alpha, weight, bias)


def _check(x: Tensor, alpha: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"dyt: x {tuple(x.shape)} must be [..., N], N > 0")
    specialize(x.shape[-1])
    if alpha.ndim > 1 or alpha.numel() != 1:
        raise ValueError(f"dyt: alpha {tuple(alpha.shape)} must be [1] or []")
    for name, t in (("x", x), ("alpha", alpha), ("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if name in ("weight", "bias") and t.shape != x.shape[-1:]:
            raise ValueError(
                f"dyt: x {tuple(x.shape)} and {name} {tuple(t.shape)} must be [..., N] and [N]"
            )
        check_beside("dyt", x, name, t)


class DyT(torch.nn.Module):
    """`dyt` with its parameters, named as in the reference module of the paper.

    Args:
        normalized_shape: N, or a sequence of that one number.
        bias: whether there is a bias.
        init_alpha: what alpha starts from; the weight starts from 1, the bias from 0.
    """

    def __init__(self, normalized_shape, *, bias=True, init_alpha=0.5, device=None, dtype=None):
        super().__init__()
        one = isinstance(normalized_shape, int)
        shape = (normalized_shape,) if one else tuple(normalized_shape)
        if len(shape) != 1:
            raise ValueError(f"DyT: normalized_shape must be one number, got {shape}")
        self.normalized_shape, self.init_alpha = shape, init_alpha
        self.alpha = torch.nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.constant_(self.alpha, self.init_alpha)
        torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return dyt(x, self.alpha, self.weight, self.bias)

    def extra_repr(self) -> str:
        shape, bias = self.normalized_shape, self.bias is not None
        return f"{shape}, bias={bias}, init_alpha={self.init_alpha}"
