"""Rotary position embedding where pairs take their angles from three axes: time, height, width.

    y1 = x1 * cos[a]1 - x2 * sin[a]1;  y2 = x2 * cos[a]2 + x1 * sin[a]2

where a is the axis of the pair: of R / 2 pairs the first sections[0] take time, the next height,
the last width (Qwen2-VL); or they alternate, time, height, width, ..., and take time once height or
width has its number (Qwen3-VL). Otherwise as `rope`.

    q [B, HQ, T, D]; k [B, HK, T, D] or none; cos, sin [3, B or 1, T, R]; any strides

Source: Wang et al. 2024, arXiv:2409.12191; the kernel is in rotation.py.
"""

from collections.abc import Sequence

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .checks import check, check_choices
from .rope import rope_ref
from .rotation import Rotation, rotate

__all__ = ["multimodal_rope", "multimodal_rope_ref"]


def multimodal_rope_ref(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    sections: Sequence[int],
    *,
    interleaved: bool = False,
    unsqueeze_dim: int = 1,
    layout: str = "half",
    table_layout: str | None = None,
    rounding: str = "once",
) -> tuple[Tensor, Tensor | None]:
    table_layout = table_layout or layout
    pair = torch.arange(sum(sections), device=cos.device)
    if interleaved:
        height = (pair % 3 == 1) & (pair < 3 * sections[1])
        axis = height.long() + 2 * ((pair % 3 == 2) & (pair < 3 * sections[2])).long()
    else:
        axis = (pair >= sections[0]).long() + (pair >= sections[0] + sections[1]).long()
    if table_layout != "pairs":
        axis = axis.repeat(2) if table_layout == "half" else axis.repeat_interleave(2)
    cos, sin = (t[0].where(axis == 0, t[1].where(axis == 1, t[2])) for t in (cos, sin))
    return rope_ref(
        q,
        k,
        cos,
        sin,
        unsqueeze_dim=unsqueeze_dim,
        layout=layout,
        table_layout=table_layout,
        rounding=rounding,
    )


def multimodal_rope(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    sections: Sequence[int],
    *,
    interleaved: bool = False,
    unsqueeze_dim: int = 1,
    layout: str = "half",
    table_layout: str | None = None,
    rounding: str = "once",
) -> tuple[Tensor, Tensor | None]:
    """Rotary position embedding of text, images and video: x * cos + rotate_half(x) * sin, where
    each pair of elements takes cos and sin from one of three axes.

    Args:
        q: [B, HQ, T, D], [B, T, HQ, D], or without B; float16, bfloat16, float32 or float64; any
            strides.
        k: likewise with HK heads, or None.
        cos, sin: [3, B or 1, T, R] or [3, T, R], of the positions in time, height and width; R even
            and at most D; any of these dtypes, no gradient.
        sections: how many of the R / 2 pairs take their angle from time, height and width.
        interleaved: False: pairs are assigned in that order, as in Qwen2-VL and GLM-4V. True: they
            alternate, pair p taking axis p % 3, until height and width have their numbers and the
            others take time, as in Qwen3-VL.
        unsqueeze_dim, layout, table_layout, rounding: as in `rope`, for cos[0]; GLM-4V has
            layout="interleaved".

    Returns:
        (q, k) rotated, new tensors in the dtypes of q and k; k None where it was None.

    Raises:
        ValueError: shapes or devices that do not fit, sections that are not three or not R / 2
            together, an odd R, an unknown choice, tables that require a gradient.
        TypeError: an unsupported dtype.

    Peak memory: twice that of q and k, for results and gradients.

    Source: Wang et al. 2024, arXiv:2409.12191.
    """
    table_layout = table_layout or layout
    check_choices("multimodal_rope", layout, layout, table_layout, rounding)
    if cos.shape != sin.shape or cos.ndim < 3 or cos.shape[0] != 3:
        raise ValueError(
            f"multimodal_rope: cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must have one "
            "shape, [3, .., T, R]"
        )
    R = cos.shape[-1] * (2 if table_layout == "pairs" else 1)
    tables = {"cos": cos, "sin": sin}
    head_dim = check("multimodal_rope", q, k, tables, cos.shape[1:-1], R, unsqueeze_dim)
    if len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != R:
        raise ValueError(
            f"multimodal_rope: sections {tuple(sections)} must be three sizes, together R / 2 = "
            f"{R // 2}: cos {tuple(cos.shape)}"
        )
    if not use_kernels(q):
        return multimodal_rope_ref(
            q,
            k,
            cos,
            sin,
            sections,
            interleaved=interleaved,
            unsqueeze_dim=unsqueeze_dim,
            layout=layout,
            table_layout=table_layout,
            rounding=rounding,
        )
    time, height, width = sections
    ends = (3 * height, 3 * width) if interleaved else (time, time + height)
    order = "cycles" if interleaved else "chunks"
    rotation = Rotation(layout, layout, table_layout, False, False, rounding, order, ends)
    return rotate(q, k, cos, sin, None, head_dim, rotation)
