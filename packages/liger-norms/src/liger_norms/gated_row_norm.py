"""The kernel pair under `gated_rms_norm`, whose file has the formulas.

Statistics and products are fp32, fp64 for fp64 inputs. A group of at most 8192 columns is read once
in each direction; a wider one twice, its means first.

    x, gate, y [M, N]; w [N] or none; rstd [M, G]; M rows, N = G K columns, G groups
    act is act(gate) and slope act'(gate)
"""

from typing import Any

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import num_sms
from liger_core.kernels import as_rows, ceil_div, power_of_2, sum_partials
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .row_norm_kernels import _rounded

__all__ = ["GatedRowNormFunction", "gated_row_norm_bwd", "gated_row_norm_fwd"]

# columns of a group, whether the norm comes first, activation, cast
Form = tuple[int, bool, str, str]


@triton.jit
def _gated_row_norm_fwd_kernel(
    X, GATE, W, Y, RSTD, stride_x, stride_gate, M, G, K, TILES, eps,
    NORM_FIRST: tl.constexpr, ACT: tl.constexpr, CAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile, group, cols = _place(tl.program_id(0), G, TILES, BLOCK_K)
    rows = (tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
    at, valid = group * K + cols, (rows < M) & (cols < K)
    x, act, _ = _load(X, GATE, rows, at, valid, stride_x, stride_gate, RSTD, ACT)
    u = x if NORM_FIRST else x * act
    if WIDE:
        rstd = tl.load(RSTD + rows * G + group, mask=rows < M, other=0.0)
    else:
        rstd = tl.rsqrt(tl.sum(u * u, axis=1, keep_dims=True) / K + tl.cast(eps, tl.float32))
        tl.store(RSTD + rows * G + group, rstd, mask=rows < M)
    y = _scaled(u * rstd, _load_weight(W, group, cols, RSTD, K), X, W, NORM_FIRST, CAST)
    y = y * act if NORM_FIRST else y
    tl.store(Y + rows * G * K + at, y.to(Y.dtype.element_ty), mask=valid)


@triton.jit
def _place(pid, G, TILES, BLOCK_K: tl.constexpr):
    """What a program has: its number among those of its columns, the group, columns of that."""
    cols = pid % TILES * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    return pid // TILES // G, (pid // TILES % G).to(tl.int64), cols


@triton.jit
def _load(X, GATE, rows, at, valid, stride_x, stride_gate, RSTD, ACT: tl.constexpr):
    """x, act(gate) and act'(gate)."""
    acc = RSTD.dtype.element_ty
    x = tl.load(X + rows * stride_x + at, mask=valid, other=0.0).to(acc)
    gate = tl.load(GATE + rows * stride_gate + at, mask=valid, other=0.0).to(acc)
    s = 1.0 / (1.0 + tl.exp2(gate * -1.4426950408889634))
    if ACT == "silu":
        return x, gate * s, s + gate * s * (1.0 - s)
    return x, s, s * (1.0 - s)


@triton.jit
def _load_weight(W, group, cols, RSTD, K):
    w = 1.0
    if W is not None:
        w = tl.load(W + group * K + cols, mask=cols < K, other=0.0).to(RSTD.dtype.element_ty)
    return w


@triton.jit
def _scaled(uhat, w, X, W, NORM_FIRST: tl.constexpr, CAST: tl.constexpr):
    """uhat * w with the roundings that come before the product with the gate."""
    uhat = _rounded(uhat, X, CAST) * w
    # the product of two numbers of one dtype has that dtype, of two dtypes it is fp32
    if NORM_FIRST and W is not None and W.dtype.element_ty == X.dtype.element_ty:
        uhat = _rounded(uhat, X, CAST)
    return uhat


@triton.jit
def _gated_row_norm_bwd_kernel(
    X, GATE, W, DY, RSTD, MEAN, DX, DGATE, PARTIALS, stride_x, stride_gate, stride_dy, M, G, K,
    TILES, P,
    NORM_FIRST: tl.constexpr, ACT: tl.constexpr, CAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    p, group, cols = _place(tl.program_id(0), G, TILES, BLOCK_K)
    at = group * K + cols
    dw = tl.zeros((BLOCK_M, BLOCK_K), dtype=RSTD.dtype.element_ty)
    for tile in tl.range(p, tl.cdiv(M, BLOCK_M), P, num_stages=STAGES):
        rows = (tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
        valid = (rows < M) & (cols < K)
        rstd = tl.load(RSTD + rows * G + group, mask=rows < M, other=0.0)
        x, act, slope = _load(X, GATE, rows, at, valid, stride_x, stride_gate, RSTD, ACT)
        dy = tl.load(DY + rows * stride_dy + at, mask=valid, other=0.0).to(rstd.dtype)
        w = _load_weight(W, group, cols, RSTD, K)
        uhat = (x if NORM_FIRST else x * act) * rstd
        e = dy * act if NORM_FIRST else dy
        g = e * w
        # what needs no mean comes before it, for the sake of registers
        if PARTIALS is not None:
            dw += e * _rounded(uhat, X, CAST)
        if DGATE is not None and NORM_FIRST:
            dgate = dy * slope * _scaled(uhat, w, X, W, NORM_FIRST, CAST)
            tl.store(DGATE + rows * G * K + at, dgate.to(DGATE.dtype.element_ty), mask=valid)
        if WIDE:
            mean = tl.load(MEAN + rows * G + group, mask=rows < M, other=0.0)
        else:
            mean = tl.sum(g * uhat, axis=1, keep_dims=True) / K
        du = rstd * (g - uhat * mean)
        if DX is not None:
            dx = du if NORM_FIRST else du * act
            tl.store(DX + rows * G * K + at, dx.to(DX.dtype.element_ty), mask=valid)
        if DGATE is not None and not NORM_FIRST:
            tl.store(
                DGATE + rows * G * K + at, (du * x * slope).to(DGATE.dtype.element_ty), mask=valid
            )

    if PARTIALS is not None:
        at += p.to(tl.int64) * G * K
        dw = tl.sum(dw, axis=0, keep_dims=True).to(PARTIALS.dtype.element_ty)
        tl.store(PARTIALS + at, dw, mask=cols < K)


@triton.jit
def _wide_mean_kernel(
    X, GATE, W, DY, RSTD, MEAN, stride_x, stride_gate, stride_dy, G, K, eps,
    NORM_FIRST: tl.constexpr, ACT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of a group wider than a tile: RSTD for the forward, or without that MEAN of g * uhat."""
    row, group = (tl.program_id(0) // G).to(tl.int64), (tl.program_id(0) % G).to(tl.int64)
    total = tl.zeros((BLOCK_K,), dtype=RSTD.dtype.element_ty)
    for start in range(0, K, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        at, valid = group * K + cols, cols < K
        x, act, _ = _load(X, GATE, row, at, valid, stride_x, stride_gate, RSTD, ACT)
        if DY is None:
            u = x if NORM_FIRST else x * act
            total += u * u
        else:
            # in both orders e * u is dy * x * act
            dy = tl.load(DY + row * stride_dy + at, mask=valid, other=0.0).to(total.dtype)
            total += dy * x * act * _load_weight(W, group, cols, RSTD, K)
    mean = tl.sum(total) / K
    if DY is None:
        tl.store(RSTD + row * G + group, tl.rsqrt(mean + tl.cast(eps, tl.float32)))
    else:
        tl.store(MEAN + row * G + group, mean * tl.load(RSTD + row * G + group))


def _fwd_config(K: int) -> tuple[int, int, int]:
    """Rows, columns and warps of a tile: 4096 elements, or up to 8192 of one row."""
    block_k = min(max(power_of_2(K), 32), 8192)
    return max(1, 4096 // block_k), block_k, 16 if block_k == 8192 else 8


def _bwd_config(K: int, itemsize: int) -> tuple[int, int, int, int, int]:
    """Rows, columns and warps of a tile, pipeline stages, programs an SM.

    Tiles of 1024 elements, several programs an SM, where a group fits one. Stages beyond the first
    hold x, gate, dy and w in shared memory, of which every target lends 128 KiB; up to 8192
    elements of one row leave registers for a stage less.
    """
    block_m, block_k, _ = _fwd_config(K)
    if block_k <= 1024:
        warps, per_sm = (4, 4) if block_k > 512 else (2, 6)
        return 1024 // block_k, block_k, warps, 3, per_sm
    stages = 1 + 2**17 // (block_m * block_k * itemsize * 4)
    return block_m, block_k, 16, max(1, min(stages, 2 if block_k == 8192 else 3)), 1


def gated_row_norm_fwd(
    x: Tensor, gate: Tensor, weight: Tensor | None, eps: float, form: Form
) -> tuple[Tensor, Tensor]:
    """x, gate [..., N] -> y [..., N] contiguous, rstd [M, N / K]."""
    (K, norm_first, act, cast), dtype = form, x.dtype
    if cast == "before" and not norm_first and weight is not None:
        dtype = torch.promote_types(x.dtype, weight.dtype)
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    x, gate = as_rows(x), as_rows(gate)
    M, G = x.shape[0], x.shape[1] // K
    rstd = torch.empty((M, G), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if not M:
        return y, rstd
    block_m, block_k, warps = _fwd_config(K)
    shared: dict[str, Any] = {"NORM_FIRST": norm_first, "ACT": act, "BLOCK_K": block_k}
    strides, tiles = (x.stride(0), gate.stride(0)), ceil_div(K, block_k)
    if tiles > 1:
        launch(
            _wide_mean_kernel, (M * G,),
            x, gate, None, None, rstd, None, *strides, 0, G, K, eps, num_warps=warps, **shared,
        )  # fmt: skip
    launch(
        _gated_row_norm_fwd_kernel, (ceil_div(M, block_m) * G * tiles,),
        x, gate, weight, y, rstd, *strides, M, G, K, tiles, eps,
        num_warps=warps, **shared, CAST=cast, WIDE=tiles > 1, BLOCK_M=block_m,
    )  # fmt: skip
    return y, rstd


def gated_row_norm_bwd(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    form: Form,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dy, x, gate [..., N] -> dx, dgate [..., N] contiguous, dw [N]; None where not in `need`."""
    K, norm_first, act, cast = form
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need[0] else None
    dgate = torch.empty_like(gate, memory_format=torch.contiguous_format) if need[1] else None
    dy, x, gate = as_rows(dy), as_rows(x), as_rows(gate)
    M, N = x.shape
    if not M:
        return dx, dgate, torch.zeros_like(weight) if weight is not None and need[2] else None
    block_m, block_k, warps, stages, per_sm = _bwd_config(K, x.element_size())
    shared: dict[str, Any] = {"NORM_FIRST": norm_first, "ACT": act, "BLOCK_K": block_k}
    G, tiles, mean = N // K, ceil_div(K, block_k), None
    strides = x.stride(0), gate.stride(0), dy.stride(0)
    if tiles > 1:
        mean = torch.empty_like(rstd)
        launch(
            _wide_mean_kernel, (M * G,),
            x, gate, weight, dy, rstd, mean, *strides, G, K, 0.0, num_warps=16, **shared,
        )  # fmt: skip
    P = max(1, min(per_sm * num_sms(x) // (G * tiles), ceil_div(M, block_m)))
    partials = None
    if weight is not None and need[2]:
        # the sums of the only program are the result
        dtype = rstd.dtype if P > 1 else weight.dtype
        partials = torch.empty((P, N), dtype=dtype, device=x.device)
    launch(
        _gated_row_norm_bwd_kernel, (P * G * tiles,),
        x, gate, weight, dy, rstd, mean, dx, dgate, partials, *strides, M, G, K, tiles, P,
        num_warps=warps, **shared, CAST=cast, WIDE=tiles > 1, BLOCK_M=block_m, STAGES=stages,
    )  # fmt: skip
    if weight is None or partials is None:
        return dx, dgate, None
    return dx, dgate, partials[0] if P == 1 else sum_partials(partials, weight.dtype)


class GatedRowNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, weight, eps, form):
        weight = weight if weight is None else weight.contiguous()
        y, rstd = gated_row_norm_fwd(x, gate, weight, eps, form)
        ctx.save_for_backward(x, gate, weight, rstd)
        ctx.form = form
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, gate, weight, rstd = ctx.saved_tensors
        need = ctx.needs_input_grad[:3]
        grads = gated_row_norm_bwd(dy, x, gate, weight, rstd, ctx.form, need)
        return *grads, None, None
