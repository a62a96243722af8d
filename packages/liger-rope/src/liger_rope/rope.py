"""Rotary position embedding by half rotation, for queries and keys in one launch.

    y1 = x1 * cos1 - x2 * sin1;  y2 = x2 * cos2 + x1 * sin2

with [x1 | x2] the first R of D head dimensions; those beyond R pass through. The kernel computes in
fp32 (fp64 for fp64 inputs) and rounds once.

    q [B, HQ, T, D]; k [B, HK, T, D] or none; cos, sin [B or 1, T, R]; any strides but the last
    dx1 = dy1 * cos1 + dy2 * sin2;  dx2 = dy2 * cos2 - dy1 * sin1

Source: Su et al. 2021, arXiv:2104.09864, in the half layout of GPT-NeoX and Llama.
"""

import torch
from liger_core.device import use_kernels
from liger_core.kernels import power_of_2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rope", "rope_ref"]


def rope_ref(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor | None]:
    cos, sin, R = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim), cos.shape[-1]

    def rotate(x: Tensor) -> Tensor:
        turned = torch.cat((-x[..., R // 2 : R], x[..., : R // 2]), dim=-1)
        return torch.cat((x[..., :R] * cos + turned * sin, x[..., R:]), dim=-1).to(x.dtype)

    return rotate(q), None if k is None else rotate(k)


@triton.jit
def _rotate(
    X, Y, stride_xh, stride_yh, cos1, cos2, sin1, sin2, n_heads,
    BACKWARD: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token: all heads of X [n_heads, D] into Y."""
    half = tl.arange(0, BLOCK_R)[None, :]
    rest = R + tl.arange(0, BLOCK_D)[None, :]
    for start in range(0, n_heads, BLOCK_H):
        heads = (start + tl.arange(0, BLOCK_H)[:, None]).to(tl.int64)
        mask = (heads < n_heads) & (half < R // 2)
        x1 = tl.load(X + heads * stride_xh + half, mask=mask, other=0.0).to(cos1.dtype)
        x2 = tl.load(X + heads * stride_xh + R // 2 + half, mask=mask, other=0.0).to(cos1.dtype)
        if BACKWARD:
            y1 = x1 * cos1 + x2 * sin2
            y2 = x2 * cos2 - x1 * sin1
        else:
            y1 = x1 * cos1 - x2 * sin1
            y2 = x2 * cos2 + x1 * sin2
        tl.store(Y + heads * stride_yh + half, y1.to(Y.dtype.element_ty), mask=mask)
        tl.store(Y + heads * stride_yh + R // 2 + half, y2.to(Y.dtype.element_ty), mask=mask)
        if R < D:
            mask = (heads < n_heads) & (rest < D)
            x = tl.load(X + heads * stride_xh + rest, mask=mask, other=0.0)
            tl.store(Y + heads * stride_yh + rest, x, mask=mask)


@triton.jit
def _rope_kernel(
    Q, K, QO, KO, COS, SIN, T, HQ, HK,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    stride_qob, stride_qoh, stride_qot, stride_kob, stride_koh, stride_kot, stride_cb, stride_ct,
    BACKWARD: tl.constexpr, FP64: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    BLOCK_HQ: tl.constexpr, BLOCK_HK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    acc = tl.float64 if FP64 else tl.float32
    b = (tl.program_id(0) // T).to(tl.int64)
    t = (tl.program_id(0) % T).to(tl.int64)

    half = tl.arange(0, BLOCK_R)[None, :]
    table = b * stride_cb + t * stride_ct + half
    cos1 = tl.load(COS + table, mask=half < R // 2, other=0.0).to(acc)
    cos2 = tl.load(COS + table + R // 2, mask=half < R // 2, other=0.0).to(acc)
    sin1 = tl.load(SIN + table, mask=half < R // 2, other=0.0).to(acc)
    sin2 = tl.load(SIN + table + R // 2, mask=half < R // 2, other=0.0).to(acc)

    _rotate(
        Q + b * stride_qb + t * stride_qt, QO + b * stride_qob + t * stride_qot,
        stride_qh, stride_qoh, cos1, cos2, sin1, sin2, HQ,
        BACKWARD, D, R, BLOCK_HQ, BLOCK_R, BLOCK_D,
    )  # fmt: skip
    if K is not None:
        _rotate(
            K + b * stride_kb + t * stride_kt, KO + b * stride_kob + t * stride_kot,
            stride_kh, stride_koh, cos1, cos2, sin1, sin2, HK,
            BACKWARD, D, R, BLOCK_HK, BLOCK_R, BLOCK_D,
        )  # fmt: skip


def rope_fwd(
    xs: tuple[Tensor, ...], cos: Tensor, sin: Tensor, head_dim: int, backward: bool = False
) -> tuple[Tensor, ...]:
    """Rotates one or two tensors, heads in `head_dim`, into new ones of the same strides.

    `backward` applies the transpose.
    """
    xs = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in xs)
    # one pair of strides serves both tables
    if cos.stride() != sin.stride() or cos.stride(-1) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    ys = tuple(torch.empty_like(x) for x in xs)
    token_dim = 3 - head_dim
    (q, qo), (k, ko) = (xs[0], ys[0]), (xs[1], ys[1]) if len(xs) == 2 else (None, None)
    B, HQ, T, D = q.shape[0], q.shape[head_dim], q.shape[token_dim], q.shape[-1]
    HK = 0 if k is None else k.shape[head_dim]
    R = cos.shape[-1]

    def strides(x: Tensor | None) -> tuple[int, int, int]:
        return (0, 0, 0) if x is None else (x.stride(0), x.stride(head_dim), x.stride(token_dim))

    if B * T and HQ + HK:
        block_r = power_of_2(R // 2)
        launch(
            _rope_kernel, (B * T,),
            q, k, qo, ko, cos, sin, T, HQ, HK, *strides(q), *strides(k), *strides(qo), *strides(ko),
            0 if cos.shape[0] == 1 else cos.stride(0), cos.stride(1),
            num_warps=4, BACKWARD=backward, FP64=q.dtype == torch.float64, D=D, R=R,
            BLOCK_HQ=_block_h(HQ, block_r), BLOCK_HK=_block_h(HK, block_r),
            BLOCK_R=block_r, BLOCK_D=power_of_2(D - R),
        )  # fmt: skip
    return ys


def _block_h(n_heads: int, block_r: int) -> int:
    """Heads of a tile: up to 512 pairs of elements, which few registers hold."""
    return min(power_of_2(n_heads), max(1, 512 // block_r))


class RopeFunction(torch.autograd.Function):
    """Rotates one tensor or two; there is no None among them, which Dynamo could not trace."""

    @staticmethod
    def forward(ctx, cos, sin, head_dim, *xs):
        ctx.save_for_backward(cos, sin)
        ctx.head_dim = head_dim
        ys = rope_fwd(xs, cos, sin, head_dim)
        ctx.mark_non_differentiable(
            *(y for y, need in zip(ys, ctx.needs_input_grad[3:], strict=True) if not need)
        )
        return ys

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys):
        cos, sin = ctx.saved_tensors
        need = ctx.needs_input_grad[3:]
        given = tuple(dy for dy, n in zip(dys, need, strict=True) if n)
        dxs = rope_fwd(given, cos, sin, ctx.head_dim, backward=True)
        both = dxs if len(dxs) == len(need) else [dxs[0] if n else None for n in need]
        return None, None, None, *both


def rope(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Rotary position embedding of queries and keys, half rotation: x * cos + [-x2 | x1] * sin.

    Args:
        q: [B, HQ, T, D] (or [B, T, HQ, D] with `unsqueeze_dim=2`), float16, bfloat16, float32 or
            float64; any strides.
        k: [B, HK, T, D] likewise, or None.
        cos, sin: [B or 1, T, R], R even and at most D, in any floating dtype; dimensions of q and k
            beyond R pass through. They get no gradient.
        unsqueeze_dim: where the heads are, as in transformers: 1 or 2.

    Returns:
        (q, k) rotated, new tensors in the dtypes of q and k, formed in fp32 (fp64 for float64) and
        rounded once; k None where it was None.

    Raises:
        ValueError: shapes or devices that do not fit, an odd R, tables that require a gradient.
        TypeError: a dtype that is not floating point.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    _check(q, k, cos, sin, unsqueeze_dim)
    if not use_kernels(q):
        return rope_ref(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
    if k is None:
        return *RopeFunction.apply(cos, sin, unsqueeze_dim, q), None
    return RopeFunction.apply(cos, sin, unsqueeze_dim, q, k)


def _check(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> None:
    if unsqueeze_dim not in (1, 2):
        raise ValueError(f"rope: unsqueeze_dim must be 1 or 2, got {unsqueeze_dim}")
    # one tensor alone is checked as if it were both
    key = q if k is None else k
    if q.ndim != 4 or key.ndim != 4 or cos.ndim != 3 or cos.shape != sin.shape:
        raise ValueError(
            "rope: q and k must have four dimensions, cos and sin one shape of three: "
            + _shapes(q, key, cos, sin)
        )
    B, T, D, R = q.shape[0], q.shape[3 - unsqueeze_dim], q.shape[-1], cos.shape[-1]
    if (key.shape[0], key.shape[3 - unsqueeze_dim], key.shape[-1]) != (B, T, D):
        raise ValueError("rope: q and k must differ in heads only: " + _shapes(q, key, cos, sin))
    if cos.shape[0] not in (1, B) or cos.shape[1] != T or R % 2 or not 0 < R <= D:
        raise ValueError(
            "rope: cos and sin must be [B or 1, T, R], R even and at most D: "
            + _shapes(q, key, cos, sin)
        )
    for name, x in (("q", q), ("k", key), ("cos", cos), ("sin", sin)):
        if not x.is_floating_point():
            raise TypeError(f"rope: {name} {x.dtype} must be floating point")
        if x.device != q.device:
            raise ValueError(f"rope: q is on {q.device}, {name} on {x.device}")
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("rope: cos and sin get no gradient; detach them")


def _shapes(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> str:
    q_shape, k_shape, cos_shape, sin_shape = (tuple(x.shape) for x in (q, k, cos, sin))
    return f"q {q_shape}, k {k_shape}, cos {cos_shape}, sin {sin_shape}"
