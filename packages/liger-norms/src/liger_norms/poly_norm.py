"""PolyNorm: a polynomial activation of degree 3 whose powers are normalised one by one.

    y = w0 * norm(x^3) + w1 * norm(x^2) + w2 * norm(x) + b,   norm(u) = u / sqrt(mean(u^2) + eps)

The weights stand in the order of the paper's module, the highest power first. Powers, statistics
and products are fp32, fp64 for fp64 inputs, whatever the dtype of x, and y is rounded once.

    x, y [M, N]; w [3]; b [1]; M rows, N columns, P programs
    u_k = x^k, v_k = w[3 - k], r_k [M] = 1 / sqrt(mean(u_k^2) + eps) for k = 1, 2, 3; rstd [M, 3]
    d norm(u_k) / d u_k takes a gradient g to r_k * (g - n_k * mean(g * n_k)), n_k = u_k * r_k, so
    dx = sum_k v_k * k * x^(k-1) * r_k * (dy - x^k * r_k^2 * q_k / N),  q_k [M] = sum_cols(dy * x^k)
    dv_k = sum_rows(r_k * q_k);  db = sum(dy)

The backward reads a row once and keeps it in registers; a row of more than 16384 columns takes two
passes in each direction.

Source: Zhuo et al. 2024, arXiv:2411.03884.
"""

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import num_sms, use_kernels
from liger_core.kernels import as_rows, ceil_div, power_of_2, specialize, sum_partials
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .arguments import check_beside

__all__ = ["PolyNorm", "poly_norm", "poly_norm_ref"]


def poly_norm_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    z, w = x.to(acc), weight.to(acc)
    cube, square, line = (
        u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps) for u in (z**3, z**2, z)
    )
    return (w[0] * cube + w[1] * square + w[2] * line + bias.to(acc)).to(x.dtype)


@triton.jit
def _load(X, RSTD, rows, cols, stride, M, N: tl.constexpr):
    mask = (rows < M) & (cols < N)
    return tl.load(X + rows * stride + cols, mask=mask, other=0.0).to(RSTD.dtype.element_ty)


@triton.jit
def _sums(u, x):
    """Over a row: u x, u x^2, u x^3."""
    u1 = u * x
    u2 = u1 * x
    return (
        tl.sum(u1, axis=1, keep_dims=True),
        tl.sum(u2, axis=1, keep_dims=True),
        tl.sum(u2 * x, axis=1, keep_dims=True),
    )


@triton.jit
def _load_weights(W, RSTD):
    """v_1, v_2, v_3."""
    acc = RSTD.dtype.element_ty
    return tl.load(W + 2).to(acc), tl.load(W + 1).to(acc), tl.load(W).to(acc)


@triton.jit
def _poly_norm_fwd_kernel(
    X, W, B, Y, RSTD, stride_x, M, eps,
    N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)[None, :]

    x = _load(X, RSTD, rows, cols, stride_x, M, N)
    m1, m2, m3 = _sums(1.0, x * x)
    # columns beyond the first tile: none unless a row is wider than a tile
    for start in range(BLOCK_N, N, BLOCK_N):
        more = _load(X, RSTD, rows, start + cols, stride_x, M, N)
        m1_more, m2_more, m3_more = _sums(1.0, more * more)
        m1 += m1_more
        m2 += m2_more
        m3 += m3_more
    eps = tl.cast(eps, tl.float32)
    r1, r2, r3 = tl.rsqrt(m1 / N + eps), tl.rsqrt(m2 / N + eps), tl.rsqrt(m3 / N + eps)
    tl.store(RSTD + rows * 3, r1, mask=rows < M)
    tl.store(RSTD + rows * 3 + 1, r2, mask=rows < M)
    tl.store(RSTD + rows * 3 + 2, r3, mask=rows < M)

    v1, v2, v3 = _load_weights(W, RSTD)
    a1, a2, a3 = v1 * r1, v2 * r2, v3 * r3
    b = tl.load(B).to(x.dtype)
    y = b + x * (a1 + x * (a2 + x * a3))
    tl.store(Y + rows * N + cols, y.to(Y.dtype.element_ty), mask=(rows < M) & (cols < N))
    for start in range(BLOCK_N, N, BLOCK_N):
        more = _load(X, RSTD, rows, start + cols, stride_x, M, N)
        y = b + more * (a1 + more * (a2 + more * a3))
        mask = (rows < M) & (start + cols < N)
        tl.store(Y + rows * N + start + cols, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def _poly_norm_bwd_kernel(
    X, W, DY, DX, RSTD, SUMS, stride_x, stride_dy, M,
    N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK_N)[None, :]
    v1, v2, v3 = _load_weights(W, RSTD)
    dv1 = tl.zeros((BLOCK_M, 1), dtype=RSTD.dtype.element_ty)
    dv2, dv3, db = dv1, dv1, dv1

    for tile in tl.range(
        tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.num_programs(0), num_stages=STAGES
    ):
        rows = (tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
        r1 = tl.load(RSTD + rows * 3, mask=rows < M, other=0.0)
        r2 = tl.load(RSTD + rows * 3 + 1, mask=rows < M, other=0.0)
        r3 = tl.load(RSTD + rows * 3 + 2, mask=rows < M, other=0.0)
        x = _load(X, RSTD, rows, cols, stride_x, M, N)
        dy = _load(DY, RSTD, rows, cols, stride_dy, M, N)
        q0 = tl.sum(dy, axis=1, keep_dims=True)
        q1, q2, q3 = _sums(dy, x)
        for start in range(BLOCK_N, N, BLOCK_N):
            x_more = _load(X, RSTD, rows, start + cols, stride_x, M, N)
            dy_more = _load(DY, RSTD, rows, start + cols, stride_dy, M, N)
            q1_more, q2_more, q3_more = _sums(dy_more, x_more)
            q0 += tl.sum(dy_more, axis=1, keep_dims=True)
            q1 += q1_more
            q2 += q2_more
            q3 += q3_more
        q1, q2, q3 = q1 * r1, q2 * r2, q3 * r3
        if SUMS is not None:
            dv1 += q1
            dv2 += q2
            dv3 += q3
            db += q0
        if DX is not None:
            a1, a2, a3 = v1 * r1, 2.0 * v2 * r2, 3.0 * v3 * r3
            c1, c2, c3 = a1 * (q1 / N) * r1, a2 * (q2 / N) * r2, a3 * (q3 / N) * r3
            dx = _dx(x, dy, a1, a2, a3, c1, c2, c3).to(DX.dtype.element_ty)
            tl.store(DX + rows * N + cols, dx, mask=(rows < M) & (cols < N))
            for start in range(BLOCK_N, N, BLOCK_N):
                x_more = _load(X, RSTD, rows, start + cols, stride_x, M, N)
                dy_more = _load(DY, RSTD, rows, start + cols, stride_dy, M, N)
                dx = _dx(x_more, dy_more, a1, a2, a3, c1, c2, c3).to(DX.dtype.element_ty)
                mask = (rows < M) & (start + cols < N)
                tl.store(DX + rows * N + start + cols, dx, mask=mask)

    if SUMS is not None:
        # in the order of the weights
        at = SUMS + tl.program_id(0) * 4
        tl.store(at, tl.sum(dv3))
        tl.store(at + 1, tl.sum(dv2))
        tl.store(at + 2, tl.sum(dv1))
        tl.store(at + 3, tl.sum(db))


@triton.jit
def _dx(x, dy, a1, a2, a3, c1, c2, c3):
    s = x * x
    return dy * (a1 + x * (a2 + x * a3)) - x * (c1 + s * (c2 + s * c3))


def _config(N: int, itemsize: int) -> tuple[int, int, int, int, int]:
    """Rows and columns of a tile, warps; pipeline stages and programs an SM of the backward.

    A tile has 4096 elements, or one row of up to 16384. Stages beyond the first hold tiles of x and
    dy in shared memory, of which every target lends 128 KiB.
    """
    block_n = min(power_of_2(N), 16384)
    block_m = max(1, 4096 // max(block_n, 128))
    warps = min(max(block_m * block_n // 512, 4), 16)
    stages = min(3, 1 + 2**16 // (block_m * block_n * itemsize))
    return block_m, block_n, warps, stages, 16 // warps


def poly_norm_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., N] -> y [..., N] contiguous, rstd [M, 3] of x, x^2, x^3."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = as_rows(x)
    M, N = rows.shape
    rstd = torch.empty((M, 3), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if M:
        block_m, block_n, warps, *_ = _config(N, x.element_size())
        launch(
            _poly_norm_fwd_kernel, (ceil_div(M, block_m),),
            rows, weight, bias, y, rstd, rows.stride(0), M, eps,
            num_warps=warps, N=N, BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
    return y, rstd


def poly_norm_bwd(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, need_dx: bool, need_sums: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dy, x [..., N] -> dx [..., N] contiguous, partial sums [P, 4] of dw and db, or None."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_dx else None
    x, dy = as_rows(x), as_rows(dy)
    M, N = x.shape
    block_m, block_n, warps, stages, per_sm = _config(N, x.element_size())
    P = min(per_sm * num_sms(x), ceil_div(M, block_m))
    sums = torch.empty((P, 4), dtype=rstd.dtype, device=x.device) if need_sums else None
    if M:
        launch(
            _poly_norm_bwd_kernel, (P,),
            x, weight, dy, dx, rstd, sums, x.stride(0), dy.stride(0), M,
            num_warps=warps, N=N, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=stages,
        )  # fmt: skip
    return dx, sums


class PolyNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        weight = weight.contiguous()
        y, rstd = poly_norm_fwd(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.bias = bias.shape, bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        need_dx, need_dw, need_db, _ = ctx.needs_input_grad
        dx, sums = poly_norm_bwd(dy, x, weight, rstd, need_dx, need_dw or need_db)
        if sums is None:
            return dx, None, None, None
        shape, dtype = ctx.bias
        totals = sum_partials(sums, weight.dtype if weight.dtype == dtype else sums.dtype)
        db = totals[3].to(dtype).view(shape) if need_db else None
        return dx, totals[:3].to(weight.dtype) if need_dw else None, db, None


def poly_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """PolyNorm over the last dimension: y = weight[0] * norm(x^3) + weight[1] * norm(x^2) +
    weight[2] * norm(x) + bias, norm(u) = u / sqrt(mean(u^2) + eps).

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        weight: [3], any of these dtypes, of the powers 3, 2, 1 in this order.
        bias: [1] or [], any of these dtypes.
        eps: added to each mean square.

    Returns:
        [..., N] in the dtype of x, formed in fp32 (fp64 for float64) and rounded once. In fp32 the
        square of x^3 is finite for |x| < 2.6e6.

    Peak memory: y and dx, 2 M N itemsize bytes for M rows, and 12 bytes a row.

    Raises:
        ValueError: shapes that do not fit, a negative eps, tensors on different devices.
        TypeError: a dtype that is not floating point.

    Source: Zhuo et al. 2024, arXiv:2411.03884.
    """
    _check(x, weight, bias, eps)
    if not use_kernels(x):
        return poly_norm_ref(x, weight, bias, eps)
    return PolyNormFunction.apply(x, weight, bias, eps)


def _check(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"poly_norm: x {tuple(x.shape)} must be [..., N], N > 0")
    specialize(x.shape[-1])
    if weight.shape != (3,) or bias.ndim > 1 or bias.numel() != 1:
        shapes = f"{tuple(weight.shape)} and bias {tuple(bias.shape)}"
        raise ValueError(f"poly_norm: weight {shapes} must be [3] and [1]")
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        check_beside("poly_norm", x, name, t)
    if eps < 0:
        raise ValueError(f"poly_norm: eps must not be negative, got {eps}")


class PolyNorm(torch.nn.Module):
    """`poly_norm` with its parameters, named, ordered and initialised as in the module of the
    paper: each power weighs 1 / 3, the bias is 0.

    Args:
        eps: added to each mean square.
    """

    def __init__(self, eps=1e-6, *, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(3, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.constant_(self.weight, 1.0 / 3.0)
        torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return poly_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
