"""The kernel of all rotary embeddings, for one tensor or two in one launch.

Elements are rotated in pairs; c1, s1 and c2, s2 are cos and sin of a pair's elements:

    y1 = x1 * c1 - x2 * s1;  y2 = x2 * c2 + x1 * s2

    x, y [B, H, T, D] or [B, T, H, D]: B batch, H heads, T tokens, D head dimensions, of which R
    rotate; cos, sin [B or 1, T, R], or [N, R] with positions [B or 1, T] below N
    dx1 = dy1 * c1 + dy2 * s2;  dx2 = dy2 * c2 - dy1 * s1:  s1 and s2 exchanged and negated

Where a layout is "half", a pair are elements i and i + R / 2; where "interleaved", 2 i and 2 i + 1.

Source: Su et al. 2021, arXiv:2104.09864.
"""

from typing import NamedTuple

import torch
from liger_core.autograd import once_differentiable
from liger_core.kernels import power_of_2, specialize
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

__all__ = ["Rotation", "rotate", "rotate_fwd"]


class Rotation(NamedTuple):
    """What the kernel is compiled for, besides sizes.

    The layouts are "half" or "interleaved"; that of tables also "pairs", one column per pair, or
    "complex", cos and sin of a pair side by side in one table. Where `sections` is not None, tables
    have three axes in front: pair p takes axis 1 from pair `ends[0]` and axis 2 from `ends[1]` on
    ("chunks"), or axis p % 3 up to these and else axis 0 ("cycles").
    """

    layout: str = "half"
    out_layout: str = "half"
    table_layout: str = "half"
    trailing: bool = False
    inverse: bool = False
    rounding: str = "once"
    sections: str | None = None
    ends: tuple[int, int] = (0, 0)


@triton.jit
def _load(
    X, cols, pair, mask, stride_axis, ACC: tl.constexpr,
    SECTIONS: tl.constexpr, END_1: tl.constexpr, END_2: tl.constexpr,
):  # fmt: skip
    """NaN where the mask is not set; each pair from its axis."""
    if SECTIONS is None:
        x = tl.load(X + cols, mask=mask, other=float("nan"))
    elif SECTIONS == "chunks":
        axis = (pair >= END_1).to(tl.int64) + (pair >= END_2).to(tl.int64)
        x = tl.load(X + axis * stride_axis + cols, mask=mask, other=float("nan"))
    else:
        # all three, since neighbours come from different ones
        step = tl.cast(stride_axis, tl.int64)
        time = tl.load(X + cols, mask=mask, other=float("nan"))
        height = tl.load(X + step + cols, mask=mask, other=float("nan"))
        width = tl.load(X + 2 * step + cols, mask=mask, other=float("nan"))
        x = tl.where((pair % 3 == 2) & (pair < END_2), width, time)
        x = tl.where((pair % 3 == 1) & (pair < END_1), height, x)
    return x.to(ACC)


@triton.jit
def _load_pairs(
    X, mask, stride_axis, ACC: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr,
    BLOCK_R: tl.constexpr, SECTIONS: tl.constexpr, END_1: tl.constexpr, END_2: tl.constexpr,
):  # fmt: skip
    """x1, x2 [.., BLOCK_R] of rows X [.., 1]; NaN where the mask is not set, or beyond R."""
    pair = tl.arange(0, BLOCK_R)[None, :]
    if LAYOUT == "interleaved":
        # one contiguous tile, taken apart in registers
        cols = tl.arange(0, 2 * BLOCK_R)[None, :]
        inside = mask & (cols < R)
        x = _load(X, cols, cols // 2, inside, stride_axis, ACC, SECTIONS, END_1, END_2)
        x1, x2 = tl.split(tl.reshape(x, (x.shape[0], BLOCK_R, 2)))
    else:
        mask = mask & (pair < R // 2)
        x1 = _load(X, pair, pair, mask, stride_axis, ACC, SECTIONS, END_1, END_2)
        x2 = x1
        if LAYOUT == "half":
            x2 = _load(X + R // 2, pair, pair, mask, stride_axis, ACC, SECTIONS, END_1, END_2)
    return x1, x2


@triton.jit
def _product(x, c, ROUND_TO: tl.constexpr):
    product = x * c
    if ROUND_TO is not None:
        bits = tl.int64 if x.dtype == tl.float64 else tl.int32
        # zero, as the grid has one dimension. The compiler, which does not know that, cannot fuse
        # this product with a sum.
        zero = tl.program_id(1)
        product = (product.to(bits, bitcast=True) ^ zero).to(x.dtype, bitcast=True)
        product = product.to(ROUND_TO).to(x.dtype)
    return product


@triton.jit
def _rotate(
    X, Y, COS, stride_xh, stride_yh, c1, c2, s1, s2, n_heads,
    LAYOUT: tl.constexpr, OUT_LAYOUT: tl.constexpr, ROUNDING: tl.constexpr, START: tl.constexpr,
    D: tl.constexpr, R: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token: all heads of X [n_heads, D] into Y."""
    out = Y.dtype.element_ty
    # products in the dtype that X and the tables promote to
    same: tl.constexpr = out if X.dtype.element_ty == COS.dtype.element_ty else c1.dtype
    ROUND_TO: tl.constexpr = same if ROUNDING == "each" else None
    pair = tl.arange(0, BLOCK_R)[None, :]
    rest = tl.arange(0, BLOCK_D)[None, :] + (0 if START else R)
    for start in range(0, n_heads, BLOCK_H):
        heads = (start + tl.arange(0, BLOCK_H)[:, None]).to(tl.int64)
        x_row, y_row = X + heads * stride_xh, Y + heads * stride_yh
        x1, x2 = _load_pairs(
            x_row + START, heads < n_heads, 0, c1.dtype, LAYOUT, R, BLOCK_R, None, 0, 0
        )
        y1 = (_product(x1, c1, ROUND_TO) - _product(x2, s1, ROUND_TO)).to(out)
        y2 = (_product(x2, c2, ROUND_TO) + _product(x1, s2, ROUND_TO)).to(out)
        if OUT_LAYOUT == "interleaved":
            cols = tl.arange(0, 2 * BLOCK_R)[None, :]
            y = tl.reshape(tl.join(y1, y2), (BLOCK_H, 2 * BLOCK_R))
            tl.store(y_row + START + cols, y, mask=(heads < n_heads) & (cols < R))
        else:
            mask = (heads < n_heads) & (pair < R // 2)
            tl.store(y_row + START + pair, y1, mask=mask)
            tl.store(y_row + START + R // 2 + pair, y2, mask=mask)
        if R < D:
            mask = (heads < n_heads) & (rest < (START if START else D))
            tl.store(y_row + rest, tl.load(x_row + rest, mask=mask, other=0.0), mask=mask)


@triton.jit
def _rope_kernel(
    Q, K, QO, KO, COS, SIN, POSITIONS, T, HQ, HK, N,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    stride_qob, stride_qoh, stride_qot, stride_kob, stride_koh, stride_kot,
    stride_cb, stride_ct, stride_axis,
    LAYOUT: tl.constexpr, OUT_LAYOUT: tl.constexpr, TABLE_LAYOUT: tl.constexpr,
    SWAP: tl.constexpr, NEGATE: tl.constexpr, ROUNDING: tl.constexpr, FP64: tl.constexpr,
    SECTIONS: tl.constexpr, END_1: tl.constexpr, END_2: tl.constexpr,
    START: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    BLOCK_HQ: tl.constexpr, BLOCK_HK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if FP64 else tl.float32
    b = (tl.program_id(0) // T).to(tl.int64)
    t = (tl.program_id(0) % T).to(tl.int64)

    row, inside = b * stride_cb + t * stride_ct, True
    if POSITIONS is not None:
        # a tile of one element, as the mask of a tile must be one
        position = tl.load(POSITIONS + b * stride_cb + t + tl.arange(0, 1)[None, :]).to(tl.int64)
        row, inside = position * stride_ct, (position >= 0) & (position < N)
    if TABLE_LAYOUT == "complex":
        c1, s1 = _load_pairs(COS + row, inside, 0, ACC, "interleaved", R, BLOCK_R, None, 0, 0)
        c2, s2 = c1, s1
    else:
        c1, c2 = _load_pairs(
            COS + row, inside, stride_axis, ACC, TABLE_LAYOUT, R, BLOCK_R, SECTIONS, END_1, END_2
        )
        s1, s2 = _load_pairs(
            SIN + row, inside, stride_axis, ACC, TABLE_LAYOUT, R, BLOCK_R, SECTIONS, END_1, END_2
        )
    if SWAP:
        s1, s2 = s2, s1
    if NEGATE:
        s1, s2 = -s1, -s2

    _rotate(
        Q + b * stride_qb + t * stride_qt, QO + b * stride_qob + t * stride_qot, COS,
        stride_qh, stride_qoh, c1, c2, s1, s2, HQ,
        LAYOUT, OUT_LAYOUT, ROUNDING, START, D, R, BLOCK_HQ, BLOCK_R, BLOCK_D,
    )  # fmt: skip
    if K is not None:
        _rotate(
            K + b * stride_kb + t * stride_kt, KO + b * stride_kob + t * stride_kot, COS,
            stride_kh, stride_koh, c1, c2, s1, s2, HK,
            LAYOUT, OUT_LAYOUT, ROUNDING, START, D, R, BLOCK_HK, BLOCK_R, BLOCK_D,
        )  # fmt: skip


def _config(HQ: int, HK: int, R: int, D: int) -> tuple[int, int, int, int, int]:
    """Tiles (heads of q, of k, pairs, other dimensions) and warps: up to four pairs a thread."""
    block_r, block_d = power_of_2(R // 2), power_of_2(D - R)
    most = max(1, 512 // max(block_r, block_d // 4))
    block_hq, block_hk = min(power_of_2(HQ), most), min(power_of_2(HK), most)
    pairs = max(block_hq, block_hk) * max(block_r, block_d // 4)
    return block_hq, block_hk, block_r, block_d, min(max(pairs // 128, 1), 4)


def rotate_fwd(
    xs: tuple[Tensor, ...],
    tables: tuple[Tensor, ...],
    head_dim: int,
    rotation: Rotation,
    backward: bool = False,
) -> tuple[Tensor, ...]:
    """Rotates one or two tensors, heads in `head_dim`, into new ones of the same strides.

    `tables` are cos, sin [(3,) B or 1, T, columns], or [N, columns] with positions [B or 1, T] in
    third place; one table where the table layout is "complex". `backward` applies the transpose.
    """
    layout, out_layout, table_layout, trailing, inverse, rounding, sections, ends = rotation
    if backward:
        layout, out_layout = out_layout, layout
    xs = tuple([x if x.stride(-1) == 1 else x.contiguous() for x in xs])
    ys = tuple([torch.empty_like(x) for x in xs])
    (q, qo), (k, ko) = (xs[0], ys[0]), (xs[1], ys[1]) if len(xs) == 2 else (None, None)
    cos, sin, positions = _unpacked(tables)
    token_dim = 3 - head_dim
    B, HQ, T, D = q.shape[0], q.shape[head_dim], q.shape[token_dim], q.shape[-1]
    HK = 0 if k is None else k.shape[head_dim]
    R = cos.shape[-1] * (2 if table_layout == "pairs" else 1)
    rows, row_dim = (cos, -3) if positions is None else (positions, 0)

    def strides(x: Tensor | None) -> tuple[int, int, int]:
        return (0, 0, 0) if x is None else (x.stride(0), x.stride(head_dim), x.stride(token_dim))

    if B * T and HQ + HK:
        block_hq, block_hk, block_r, block_d, warps = _config(HQ, HK, R, D)
        launch(
            _rope_kernel, (B * T,),
            q, k, qo, ko, cos, sin, positions, T, HQ, HK, 0 if positions is None else cos.shape[0],
            *strides(q), *strides(k), *strides(qo), *strides(ko),
            0 if rows.shape[row_dim] == 1 else rows.stride(row_dim), cos.stride(-2),
            cos.stride(0) if sections else 0,
            num_warps=warps, LAYOUT=layout, OUT_LAYOUT=out_layout, TABLE_LAYOUT=table_layout,
            SWAP=backward, NEGATE=inverse != backward, ROUNDING=rounding,
            FP64=torch.float64 in (cos.dtype, q.dtype, xs[-1].dtype),
            SECTIONS=sections, END_1=ends[0], END_2=ends[1],
            START=D - R if trailing else 0, D=D, R=R,
            BLOCK_HQ=block_hq, BLOCK_HK=block_hk, BLOCK_R=block_r, BLOCK_D=block_d,
        )  # fmt: skip
    return ys


def _unpacked(tables: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    """cos, sin, positions, as the kernel reads them: one set of strides serves both tables."""
    cos, sin = tables[0], tables[min(1, len(tables) - 1)]
    if cos.stride() != sin.stride() or cos.stride(-1) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    if len(tables) < 3:
        return cos, sin, None
    positions = tables[2]
    return cos, sin, positions if positions.stride(-1) == 1 else positions.contiguous()


class RotationFunction(torch.autograd.Function):
    """Rotates the first `n` tensors by the others. None among them could not be traced."""

    @staticmethod
    def forward(ctx, head_dim, rotation, n, *tensors):
        xs, tables = tensors[:n], tensors[n:]
        ctx.save_for_backward(*tables)
        ctx.head_dim, ctx.rotation, ctx.need = head_dim, rotation, ctx.needs_input_grad[3 : 3 + n]
        ys = rotate_fwd(xs, tables, head_dim, rotation)
        ctx.mark_non_differentiable(*(y for y, need in zip(ys, ctx.need, strict=True) if not need))
        return ys

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys):
        tables = ctx.saved_tensors
        given = tuple(dy for dy, need in zip(dys, ctx.need, strict=True) if need)
        dxs = rotate_fwd(given, tables, ctx.head_dim, ctx.rotation, backward=True)
        both = dxs if len(dxs) == len(ctx.need) else [dxs[0] if n else None for n in ctx.need]
        return None, None, None, *both, *(None for _ in tables)


def rotate(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor | None,
    position_ids: Tensor | None,
    head_dim: int,
    rotation: Rotation,
) -> tuple[Tensor, Tensor | None]:
    """q and k by kernel, heads in `head_dim`; those and the rows of the tables may lack a batch."""
    if q.ndim == 3:
        one, other = None if k is None else k.unsqueeze(0), head_dim + 1
        q, k = rotate(q.unsqueeze(0), one, cos, sin, position_ids, other, rotation)
        return q.squeeze(0), None if k is None else k.squeeze(0)
    specialize(q.shape[head_dim], q.shape[-1], cos.shape[-1])
    if k is not None:
        specialize(k.shape[head_dim])
    tables = [cos] if sin is None else [cos, sin]
    if position_ids is not None:
        tables.append(position_ids if position_ids.ndim == 2 else position_ids.unsqueeze(0))
    elif cos.ndim == (3 if rotation.sections else 2):
        tables = [table.unsqueeze(-3) for table in tables]
    if k is None:
        return *RotationFunction.apply(head_dim, rotation, 1, q, *tables), None
    return RotationFunction.apply(head_dim, rotation, 2, q, k, *tables)
