"""Rotary embeddings of Llama 4, in complex numbers."""

from typing import Any

from torch import Tensor

from .functional import liger_llama4_rope

__all__ = [
    "apply_liger_llama4_rope_full",
    "liger_llama4_text_rotary_pos_emb",
    "liger_llama4_vision_rotary_pos_emb",
]


def liger_llama4_text_rotary_pos_emb(
    xq: Tensor, xk: Tensor, freqs_cis: Tensor
) -> tuple[Tensor, Tensor]:
    """q and k [B, T, heads, D], freqs_cis [B, T, D / 2]."""
    return liger_llama4_rope(xq, xk, freqs_cis)


def liger_llama4_vision_rotary_pos_emb(
    query: Tensor, key: Tensor, freqs_ci: Tensor
) -> tuple[Tensor, Tensor]:
    """q and k [B, T, heads, D]; freqs_ci holds [T, D / 2] numbers, in any shape. A real one, which
    `model.to(dtype)` makes of it, has imaginary parts of 0, as in transformers.
    """
    return liger_llama4_rope(query, key, freqs_ci.reshape(1, query.shape[1], -1))


def apply_liger_llama4_rope_full(modeling_module: Any) -> None:
    """Put both in place of the functions of `modeling_llama4`."""
    modeling_module.apply_rotary_emb = liger_llama4_text_rotary_pos_emb
    modeling_module.vision_apply_rotary_emb = liger_llama4_vision_rotary_pos_emb
