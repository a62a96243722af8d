"""Rotary embeddings, in place of functions of the modeling files."""

import liger_rope
from torch import Tensor

from .functional import liger_rope as _rope

__all__ = ["liger_rotary_pos_emb", "liger_rotary_pos_emb_gpt_oss", "liger_rotary_pos_emb_vision"]


def liger_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | int | None = None,
    unsqueeze_dim: int = 1, rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`apply_rotary_pos_emb` of Llama and most others; arguments as of `functional.liger_rope`."""
    # where older releases have position_ids, transformers 5 has unsqueeze_dim
    dim = position_ids if isinstance(position_ids, int) else unsqueeze_dim
    return _rope(q, k, cos, sin, None, dim, rotary_dim)


def liger_rotary_pos_emb_gpt_oss(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """That of gpt-oss, whose cos and sin have half the width of a head."""
    return _rope(q, k, cos, sin, rotary_dim=q.shape[-1])


def liger_rotary_pos_emb_vision(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb_vision` of Qwen3-VL: q and k [T, heads, D], cos and sin [T, D]."""
    q, rotated = liger_rope.rope(q, k, cos.detach(), sin.detach(), unsqueeze_dim=1)
    assert rotated is not None
    return q, rotated
