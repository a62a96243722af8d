"""Rotary position embedding of queries and keys, in the conventions that models use.

    y1 = x1 * cos1 - x2 * sin1;  y2 = x2 * cos2 + x1 * sin2

for each pair x1, x2 of the R rotated dimensions, whose own columns of cos and sin these are; the
other dimensions pass through. Computed in fp32, in fp64 for fp64 inputs, and rounded once, or
rounded as the formula is in PyTorch.

    q [B, HQ, T, D]; k [B, HK, T, D] or none; cos, sin [B or 1, T, R]; any strides
    dx1 = dy1 * cos1 + dy2 * sin2;  dx2 = dy2 * cos2 - dy1 * sin1

Source: Su et al. 2021, arXiv:2104.09864; the kernel is in rotation.py.
"""

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .checks import check, check_choices
from .rotation import Rotation, rotate

__all__ = ["rope", "rope_ref"]


def rope_ref(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    unsqueeze_dim: int = 1,
    position_ids: Tensor | None = None,
    layout: str = "half",
    out_layout: str | None = None,
    table_layout: str | None = None,
    trailing: bool = False,
    inverse: bool = False,
    rounding: str = "once",
) -> tuple[Tensor, Tensor | None]:
    out_layout = out_layout or layout
    if position_ids is not None:
        cos, sin = _rows_at(cos, position_ids), _rows_at(sin, position_ids)
    cos, sin = cos.unsqueeze(unsqueeze_dim), (-sin if inverse else sin).unsqueeze(unsqueeze_dim)
    columns = (*_pairs(cos, table_layout or out_layout), *_pairs(sin, table_layout or out_layout))
    R = 2 * columns[0].shape[-1]

    def rotate(x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, cos.dtype)
        wide = torch.promote_types(wide, torch.float32) if rounding == "once" else wide
        c1, c2, s1, s2 = (t.to(wide) for t in columns)
        start = x.shape[-1] - R if trailing else 0
        x1, x2 = _pairs(x[..., start : start + R].to(wide), layout)
        y = x1 * c1 - x2 * s1, x2 * c2 + x1 * s2
        turned = torch.cat(y, -1) if out_layout == "half" else torch.stack(y, -1).flatten(-2)
        return torch.cat((x[..., :start], turned.to(x.dtype), x[..., start + R :]), -1)

    return rotate(q), None if k is None else rotate(k)


def _pairs(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    if layout == "half":
        return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return (x, x) if layout == "pairs" else (x[..., 0::2], x[..., 1::2])


def _rows_at(table: Tensor, position_ids: Tensor) -> Tensor:
    """NaN where there is no such row."""
    outside = (position_ids < 0) | (position_ids >= len(table))
    return table[position_ids.masked_fill(outside, 0)].masked_fill(outside[..., None], float("nan"))


def rope(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    unsqueeze_dim: int = 1,
    position_ids: Tensor | None = None,
    layout: str = "half",
    out_layout: str | None = None,
    table_layout: str | None = None,
    trailing: bool = False,
    inverse: bool = False,
    rounding: str = "once",
) -> tuple[Tensor, Tensor | None]:
    """Rotary position embedding of queries and keys: x * cos + rotate_half(x) * sin.

    The defaults are those of Llama, Qwen, Mistral and, with R < D, GPT-NeoX. Other models:

        gpt_oss                 table_layout="pairs"
        nanochat                inverse=True
        cohere, blt             layout="interleaved"
        glm, helium, ernie4_5   layout="interleaved", table_layout="half"
        gptj, codegen           layout="interleaved", table_layout="pairs", unsqueeze_dim=2
        deepseek_v3             layout="interleaved", out_layout="half"
        deepseek_v4             layout="interleaved", table_layout="pairs", trailing=True

    Args:
        q: [B, HQ, T, D], [B, T, HQ, D], or without B; float16, bfloat16, float32 or float64; any
            strides.
        k: likewise with HK heads, or None.
        cos, sin: [B or 1, T, R] or [T, R], R even and at most D; any of these dtypes, no gradient.
        unsqueeze_dim: as in transformers, where cos gets the dimension of the heads to fit q: for
            cos [B, T, R] 1 or 2, for cos [T, R] 1 if q is [.., T, HQ, D] and 0 if [.., HQ, T, D].
        position_ids: [B or 1, T] or [T], int32 or int64: token t has row position_ids[.., t] of
            cos and sin, which are [N, R] then. Where there is no such row, the result is NaN.
        layout: a pair are elements i and i + R / 2 ("half") or 2 i and 2 i + 1 ("interleaved").
        out_layout: that of the results, if not the same.
        table_layout: which columns of cos and sin are those of a pair: as in `out_layout`, unless
            given; "pairs" means one column for both elements: the tables are half as wide.
        trailing: rotate the last R dimensions instead of the first.
        inverse: rotate by the opposite angle.
        rounding: "once", to the dtype of q, after computing in fp32, or fp64 where one of the
            tensors is; "each" rounds both products and their sum to the dtype that q and the tables
            promote to, then to that of q: the bits of the formula in PyTorch.

    Returns:
        (q, k) rotated, new tensors in the dtypes of q and k, whatever that of the tables; k None
        where it was None.

    Raises:
        ValueError: shapes or devices that do not fit, an odd R, an unknown choice, tables that
            require a gradient.
        TypeError: an unsupported dtype.

    Peak memory: twice that of q and k, for results and gradients.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    out_layout = out_layout or layout
    table_layout = table_layout or out_layout
    check_choices("rope", layout, out_layout, table_layout, rounding)
    tables = {"cos": cos, "sin": sin}
    if position_ids is not None:
        tables["position_ids"] = position_ids
    if cos.shape != sin.shape or cos.ndim < 2 or (position_ids is not None and cos.ndim != 2):
        shapes = ", ".join([f"{name} {tuple(x.shape)}" for name, x in tables.items()])
        raise ValueError(
            f"rope: cos and sin must have one shape, [.., T, R], [N, R] for position_ids: {shapes}"
        )
    rows = cos.shape[:-1] if position_ids is None else position_ids.shape
    R = cos.shape[-1] * (2 if table_layout == "pairs" else 1)
    head_dim = check("rope", q, k, tables, rows, R, unsqueeze_dim)
    if use_kernels(q):
        rotation = Rotation(layout, out_layout, table_layout, trailing, inverse, rounding)
        return rotate(q, k, cos, sin, position_ids, head_dim, rotation)
    return rope_ref(
        q,
        k,
        cos,
        sin,
        unsqueeze_dim=unsqueeze_dim,
        position_ids=position_ids,
        layout=layout,
        out_layout=out_layout,
        table_layout=table_layout,
        trailing=trailing,
        inverse=inverse,
        rounding=rounding,
    )
