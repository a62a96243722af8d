"""Rotary embedding of text, images and video."""

from collections.abc import Sequence

from torch import Tensor

from .functional import liger_qwen2vl_mrope

__all__ = ["liger_multimodal_rotary_pos_emb"]


def liger_multimodal_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, mrope_section: Sequence[int],
    unsqueeze_dim: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`apply_multimodal_rotary_pos_emb` of Qwen2-VL: cos and sin [3, B, T, D]."""
    return liger_qwen2vl_mrope(q, k, cos, sin, mrope_section, unsqueeze_dim)
