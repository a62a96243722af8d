"""RMSNorm.

    y = x / rms(x) * (w + offset),    rms(x) = sqrt(mean(x^2) + eps)

`cast` says when x / rms(x) (xhat) is rounded to the dtype of x: "after" the multiplication by the
weight (torch, Gemma, OLMo) or "before" it (Llama, Qwen, Mistral). Statistics and products are fp32,
fp64 for fp64 inputs.

    x, y [M, N]; w [N] or none; rstd [M] fp32; M rows, N columns
    g = dy * (w + offset);  dx = rstd * (g - xhat * mean(g * xhat));  dw = sum_rows(dy * xhat)

Source: Zhang and Sennrich 2019, arXiv:1910.07467.
"""

import torch
from liger_core.device import num_sms, use_kernels
from liger_core.kernels import as_rows, ceil_div, power_of_2, sum_partials
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["RMSNorm", "rms_norm", "rms_norm_ref"]


def rms_norm_ref(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    offset: float = 0.0,
    cast: str = "after",
) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    xhat = x.to(acc) * torch.rsqrt(x.to(acc).square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return xhat.to(x.dtype)
    if cast == "before":
        return (weight + offset) * xhat.to(x.dtype)
    return (xhat * (weight.to(acc) + offset)).to(x.dtype)


@triton.jit
def _rms_norm_fwd_kernel(
    X, W, Y, RSTD, stride_x, M, eps, offset,
    CAST: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    acc = RSTD.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)[None, :]

    x = tl.load(X + rows * stride_x + cols, mask=(rows < M) & (cols < N), other=0.0).to(acc)
    square = x * x
    # columns beyond the first tile: none unless a row is wider than a tile
    for start in range(BLOCK_N, N, BLOCK_N):
        more = tl.load(
            X + rows * stride_x + start + cols, mask=(rows < M) & (start + cols < N), other=0.0
        ).to(acc)
        square += more * more
    rstd = tl.rsqrt(tl.sum(square, axis=1, keep_dims=True) / N + tl.cast(eps, tl.float32))
    tl.store(RSTD + rows, rstd, mask=rows < M)

    y = _scale(x, rstd, X, W, cols, offset, CAST, N)
    tl.store(Y + rows * N + cols, y.to(Y.dtype.element_ty), mask=(rows < M) & (cols < N))
    for start in range(BLOCK_N, N, BLOCK_N):
        more = tl.load(
            X + rows * stride_x + start + cols, mask=(rows < M) & (start + cols < N), other=0.0
        ).to(acc)
        y = _scale(more, rstd, X, W, start + cols, offset, CAST, N)
        tl.store(
            Y + rows * N + start + cols,
            y.to(Y.dtype.element_ty),
            mask=(rows < M) & (start + cols < N),
        )


@triton.jit
def _scale(x, rstd, X, W, cols, offset, CAST: tl.constexpr, N: tl.constexpr):
    y = x * rstd
    if CAST == "before":
        y = y.to(X.dtype.element_ty).to(x.dtype)
    if W is not None:
        y *= tl.load(W + cols, mask=cols < N, other=0.0).to(x.dtype) + tl.cast(offset, tl.float32)
    return y


@triton.jit
def _rms_norm_bwd_kernel(
    X, W, DY, DX, RSTD, PARTIALS, stride_x, stride_dy, M, offset,
    CAST: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    acc = RSTD.dtype.element_ty
    cols = tl.arange(0, BLOCK_N)[None, :]
    if PARTIALS is not None:
        dw = tl.zeros((BLOCK_M, BLOCK_N), dtype=acc)

    for tile in tl.range(
        tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.num_programs(0), num_stages=STAGES
    ):
        rows = (tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
        rstd = tl.load(RSTD + rows, mask=rows < M, other=0.0)
        xhat, dy, g = _load_bwd(X, W, DY, rows, cols, rstd, stride_x, stride_dy, M, offset, CAST, N)
        product = g * xhat
        for start in range(BLOCK_N, N, BLOCK_N):
            more, _, g_more = _load_bwd(
                X, W, DY, rows, start + cols, rstd, stride_x, stride_dy, M, offset, CAST, N
            )
            product += g_more * more
        mean = tl.sum(product, axis=1, keep_dims=True) / N

        if DX is not None:
            dx = (rstd * (g - xhat * mean)).to(DX.dtype.element_ty)
            tl.store(DX + rows * N + cols, dx, mask=(rows < M) & (cols < N))
            for start in range(BLOCK_N, N, BLOCK_N):
                more, _, g_more = _load_bwd(
                    X, W, DY, rows, start + cols, rstd, stride_x, stride_dy, M, offset, CAST, N
                )
                dx = (rstd * (g_more - more * mean)).to(DX.dtype.element_ty)
                mask = (rows < M) & (start + cols < N)
                tl.store(DX + rows * N + start + cols, dx, mask=mask)
        if PARTIALS is not None:
            dw += dy * _rounded(xhat, X, CAST)

    if PARTIALS is not None:
        at = tl.program_id(0) * N + tl.arange(0, BLOCK_N)
        tl.store(PARTIALS + at, tl.sum(dw, axis=0), mask=tl.arange(0, BLOCK_N) < N)


@triton.jit
def _load_bwd(
    X, W, DY, rows, cols, rstd, stride_x, stride_dy, M, offset, CAST: tl.constexpr, N: tl.constexpr
):
    mask = (rows < M) & (cols < N)
    xhat = tl.load(X + rows * stride_x + cols, mask=mask, other=0.0).to(rstd.dtype) * rstd
    dy = tl.load(DY + rows * stride_dy + cols, mask=mask, other=0.0).to(rstd.dtype)
    g = dy
    if W is not None:
        g *= tl.load(W + cols, mask=cols < N, other=0.0).to(rstd.dtype) + tl.cast(
            offset, tl.float32
        )
    return xhat, dy, g


@triton.jit
def _rounded(xhat, X, CAST: tl.constexpr):
    if CAST == "before":
        xhat = xhat.to(X.dtype.element_ty).to(xhat.dtype)
    return xhat


@triton.jit
def _rms_norm_dw_kernel(
    X, DY, RSTD, PARTIALS, stride_x, stride_dy, M, N,
    CAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    acc = RSTD.dtype.element_ty
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    dw = tl.zeros((BLOCK_M, BLOCK_N), dtype=acc)
    for tile in range(tl.program_id(1), tl.cdiv(M, BLOCK_M), tl.num_programs(1)):
        rows = (tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
        mask = (rows < M) & (cols < N)
        rstd = tl.load(RSTD + rows, mask=rows < M, other=0.0)
        xhat = tl.load(X + rows * stride_x + cols, mask=mask, other=0.0).to(acc) * rstd
        dw += tl.load(DY + rows * stride_dy + cols, mask=mask, other=0.0).to(acc) * _rounded(
            xhat, X, CAST
        )

    at = tl.program_id(1).to(tl.int64) * N + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(
        PARTIALS + at,
        tl.sum(dw, axis=0),
        mask=tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N) < N,
    )


def _config(N: int) -> tuple[int, int]:
    """(rows, columns) of a tile: 8192 elements, or one row; a row beyond 16384 columns takes
    several tiles.
    """
    block_n = min(power_of_2(N), 16384)
    return max(1, 8192 // max(block_n, 128)), block_n


def rms_norm_fwd(
    x: Tensor, weight: Tensor | None, eps: float, offset: float, cast: str
) -> tuple[Tensor, Tensor]:
    """x [..., N] -> y [..., N] contiguous, rstd [M]."""
    rows = as_rows(x)
    M, N = rows.shape
    dtype = (
        torch.promote_types(x.dtype, weight.dtype)
        if weight is not None and cast == "before"
        else x.dtype
    )
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    rstd = torch.empty(M, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if M:
        block_m, block_n = _config(N)
        # short rows: smaller programs, since there is nothing to carry from row to row
        block_m = max(1, block_m // 4) if block_m > 8 else block_m
        launch(
            _rms_norm_fwd_kernel, (ceil_div(M, block_m),),
            rows, weight, y, rstd, rows.stride(0), M, eps, offset,
            num_warps=_warps(block_m * block_n), CAST=cast, N=N, BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
    return y, rstd


def rms_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    offset: float,
    cast: str,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dy, x [..., N] -> dx [..., N] contiguous, dw [N] in the dtype of weight; None if frozen."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_dx else None
    x, dy = as_rows(x), as_rows(dy)
    M, N = x.shape
    if not M:
        return dx, torch.zeros_like(weight) if need_dw and weight is not None else None
    block_m, block_n = _config(N)
    warps = _warps(block_m * block_n)
    programs = min(num_sms(x) * (2 if block_m * block_n <= 4096 else 1), ceil_div(M, block_m))
    partials = torch.empty((programs, N), dtype=rstd.dtype, device=x.device) if need_dw else None
    fused = partials if N <= block_n else None
    launch(
        _rms_norm_bwd_kernel, (programs,),
        x, weight, dy, dx, rstd, fused, x.stride(0), dy.stride(0), M, offset,
        num_warps=warps, CAST=cast, N=N, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=3,
    )  # fmt: skip
    if partials is None or weight is None:
        return dx, None
    if fused is None:
        launch(
            _rms_norm_dw_kernel, (ceil_div(N, 1024), programs),
            x, dy, rstd, partials, x.stride(0), dy.stride(0), M, N,
            num_warps=4, CAST=cast, BLOCK_M=4, BLOCK_N=1024,
        )  # fmt: skip
    return dx, sum_partials(partials, weight.dtype)


def _warps(elements: int) -> int:
    return min(max(elements // 512, 4), 16)


class RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, offset, cast):
        weight = weight if weight is None or weight.stride(0) == 1 else weight.contiguous()
        y, rstd = rms_norm_fwd(x, weight, eps, offset, cast)
        ctx.save_for_backward(x, weight, rstd)
        ctx.offset, ctx.cast = offset, cast
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        need_dx, need_dw, *_ = ctx.needs_input_grad
        dx, dw = rms_norm_bwd(dy, x, weight, rstd, ctx.offset, ctx.cast, need_dx, need_dw)
        return dx, dw, None, None, None


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    offset: float = 0.0,
    cast: str = "after",
) -> Tensor:
    """RMS normalisation of the last dimension: y = x / sqrt(mean(x^2) + eps) * (weight + offset).

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        weight: [N], any of these dtypes, or None for no scaling.
        eps: added to the mean square.
        offset: added to the weight; Gemma stores weight - 1 and uses 1.0.
        cast: "after" rounds once, to the dtype of x, after the multiplication by the weight (torch,
            Gemma, OLMo); "before" rounds x / rms(x) first and returns the promoted dtype of x and
            weight (Llama, Qwen, Mistral).

    Returns:
        [..., N] in the dtype of x, or the promoted dtype for `cast="before"`. Statistics are fp32
        (fp64 for float64).

    Raises:
        ValueError: shapes that do not fit, an unknown `cast`, a negative eps, tensors on different
            devices.
        TypeError: a dtype that is not floating point.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    _check(x, weight, eps, offset, cast)
    if not use_kernels(x):
        return rms_norm_ref(x, weight, eps, offset=offset, cast=cast)
    return RMSNormFunction.apply(x, weight, eps, offset, cast)


def _check(x: Tensor, weight: Tensor | None, eps: float, offset: float, cast: str) -> None:
    if x.ndim < 1 or x.shape[-1] == 0 or (weight is not None and weight.shape != x.shape[-1:]):
        shape = None if weight is None else tuple(weight.shape)
        raise ValueError(
            f"rms_norm: x {tuple(x.shape)} and weight {shape} must be [..., N] and [N], N > 0"
        )
    if not x.is_floating_point() or (weight is not None and not weight.is_floating_point()):
        raise TypeError(
            f"rms_norm: x {x.dtype} and weight {None if weight is None else weight.dtype} must be "
            "floating point"
        )
    if weight is not None and weight.device != x.device:
        raise ValueError(f"rms_norm: x is on {x.device}, weight on {weight.device}")
    if weight is None and offset:
        raise ValueError(f"rms_norm: offset {offset} needs a weight")
    if cast not in ("after", "before"):
        raise ValueError(f"rms_norm: cast must be 'after' or 'before', not {cast!r}")
    if eps < 0:
        raise ValueError(f"rms_norm: eps must not be negative, got {eps}")


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension, on `rms_norm`; the same parameters and state
    dict.

    Args:
        normalized_shape: N, or a sequence of that one number.
        eps: added to the mean square; None takes torch's choice, the epsilon of the dtype of x.
        elementwise_affine: whether there is a weight.
        offset, cast: as in `rms_norm`.
    """

    def __init__(
        self,
        normalized_shape,
        eps=1e-6,
        elementwise_affine=True,
        device=None,
        dtype=None,
        *,
        offset=0.0,
        cast="after",
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, device=device, dtype=dtype)
        if len(self.normalized_shape) != 1:
            raise ValueError(
                f"RMSNorm: normalized_shape must be one number, got {tuple(self.normalized_shape)}"
            )
        self.offset, self.cast = offset, cast
        if offset and elementwise_affine:
            torch.nn.init.constant_(self.weight, 1.0 - offset)

    def forward(self, x: Tensor) -> Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return rms_norm(x, self.weight, eps, offset=self.offset, cast=self.cast)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset={self.offset}, cast={self.cast!r}"
