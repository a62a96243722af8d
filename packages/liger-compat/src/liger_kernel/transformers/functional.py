"""The functions of the library, on the Liger packages. `in_place` options are accepted, and nothing
is ever written in place.
"""

from collections.abc import Sequence
from typing import Any

import liger_activations
import liger_norms
import liger_rope as rotary
import torch
from torch import Tensor

from ..missing import missing_function
from .functional_divergences import (
    liger_fused_ce_tvd as liger_fused_ce_tvd,
    liger_fused_linear_jsd as liger_fused_linear_jsd,
    liger_fused_linear_kl_div as liger_fused_linear_kl_div,
    liger_jsd as liger_jsd,
    liger_kl_div as liger_kl_div,
    liger_tvd as liger_tvd,
)
from .functional_losses import (
    CrossEntropyOutput as CrossEntropyOutput,
    liger_cross_entropy as liger_cross_entropy,
    liger_fused_linear_cross_entropy as liger_fused_linear_cross_entropy,
    liger_fused_linear_scaled_cross_entropy_tp as liger_fused_linear_scaled_cross_entropy_tp,
)

# casting_mode -> `cast` of liger_norms; "none" leaves the order of rounding open
CASTS = {"llama": "before", "gemma": "after", "none": "after"}
CASTS_BY_NUMBER = {0: "llama", 1: "gemma", -1: "none"}


def _cast(casting_mode: str | int) -> str:
    if isinstance(casting_mode, int):
        casting_mode = CASTS_BY_NUMBER.get(casting_mode, "")
    assert casting_mode in CASTS, f"casting_mode must be one of {', '.join(CASTS)}"
    return CASTS[casting_mode]


def liger_rms_norm(
    X: Tensor, W: Tensor | None, eps: float, offset: float = 0.0, casting_mode: str | int = "llama",
    in_place: bool = True, row_mode: bool | None = None,
) -> Tensor:  # fmt: skip
    """`liger_norms.rms_norm`, in the dtype of X."""
    y = liger_norms.rms_norm(X, W, eps, offset=offset, cast=_cast(casting_mode))
    return y.to(X.dtype)


def liger_fused_add_rms_norm(
    X: Tensor, R: Tensor, W: Tensor, eps: float, offset: float = 0.0,
    casting_mode: str | int = "llama", in_place: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`liger_norms.fused_add_rms_norm`: (norm of X + R, X + R), in the dtype of X."""
    cast = _cast(casting_mode)
    y, s = liger_norms.fused_add_rms_norm(X, R, W, eps, offset=offset, cast=cast)
    return y.to(X.dtype), s


def liger_modulated_rms_norm(
    X: Tensor, W: Tensor | None, scale: Tensor, shift: Tensor | None = None, eps: float = 1e-6,
    offset: float = 0.0, casting_mode: str | int = "llama", in_place: bool = True,
) -> Tensor:  # fmt: skip
    """`liger_norms.modulated_rms_norm`, rounded once; scale and shift [..., N] of as many rows as
    divide those of X.
    """
    _cast(casting_mode)
    N = X.shape[-1]
    groups = scale.numel() // N
    assert scale.numel() % N == 0, f"scale {tuple(scale.shape)} must be rows of {N}"
    assert groups > 0, "scale must have a row"
    assert X.numel() // N % groups == 0, "the rows of scale must divide those of X"
    assert shift is None or shift.numel() == scale.numel(), "shift must have the rows of scale"
    rows, scale = X.reshape(groups, -1, N), scale.reshape(groups, 1, N)
    shift = None if shift is None else shift.reshape(groups, 1, N)
    weight = W + offset if W is not None and offset else W
    return liger_norms.modulated_rms_norm(rows, scale, shift, weight, eps).view(X.shape)


def liger_layer_norm(X: Tensor, W: Tensor, B: Tensor | None, eps: float) -> Tensor:
    """`liger_norms.layer_norm`."""
    return liger_norms.layer_norm(X, W, B, eps)


def liger_group_norm(
    X: Tensor, affine_scaling_weight: Tensor, affine_shifting_bias: Tensor, num_channels: int,
    num_groups: int, eps: float,
) -> Tensor:  # fmt: skip
    """`liger_norms.group_norm`."""
    assert X.shape[1] == num_channels, f"X {tuple(X.shape)} must have {num_channels} channels"
    return liger_norms.group_norm(X, num_groups, affine_scaling_weight, affine_shifting_bias, eps)


def liger_poly_norm(
    X: Tensor, W: Tensor, B: Tensor, eps: float = 1e-6, in_place: bool = True
) -> Tensor:
    """`liger_norms.poly_norm`."""
    return liger_norms.poly_norm(X, W, B, eps)


def liger_dyt(x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """`liger_norms.dyt`."""
    return liger_norms.dyt(x, alpha, gamma, beta)


def liger_swiglu(
    a: Tensor, b: Tensor, gate_multiplier: float = 1.0, down_multiplier: float = 1.0
) -> Tensor:
    """`liger_activations.swiglu` of gate_multiplier * a and b, times down_multiplier."""
    y = liger_activations.swiglu(a if gate_multiplier == 1.0 else a * gate_multiplier, b)
    return y if down_multiplier == 1.0 else y * down_multiplier


def liger_fused_gate_up_swiglu(y: Tensor, in_place: bool = False) -> Tensor:
    """`liger_activations.swiglu` of gate and up in one tensor."""
    return liger_activations.swiglu(y)


def liger_geglu(a: Tensor, b: Tensor) -> Tensor:
    """`liger_activations.geglu`, by tanh."""
    return liger_activations.geglu(a, b)


def liger_relu_squared(x: Tensor) -> Tensor:
    """`liger_activations.relu_squared`."""
    return liger_activations.relu_squared(x)


def liger_softmax(x: Tensor) -> Tensor:
    """`liger_activations.softmax` of the last dimension."""
    return liger_activations.softmax(x)


def liger_sparsemax(input: Tensor, dim: int = -1) -> Tensor:
    """`liger_activations.sparsemax`."""
    return liger_activations.sparsemax(input, dim)


def liger_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Any = None,
    unsqueeze_dim: int = 1, rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`liger_rope.rope` with cos and sin of the tokens at hand, whatever `position_ids`.

    They are [.., rotary_dim], or of half that width where `rotary_dim` is given (gpt-oss).
    """
    half = rotary_dim is not None and cos.shape[-1] * 2 == rotary_dim
    if rotary_dim is not None and not half and cos.shape[-1] != rotary_dim:
        raise ValueError(f"cos {tuple(cos.shape)} fits no rotary_dim of {rotary_dim}")
    q, rotated = rotary.rope(
        q, k, cos.detach(), sin.detach(), unsqueeze_dim=unsqueeze_dim,
        table_layout="pairs" if half else None,
    )  # fmt: skip
    assert rotated is not None
    return q, rotated


def liger_qwen2vl_mrope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, mrope_section: Sequence[int],
    unsqueeze_dim: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`liger_rope.multimodal_rope`."""
    q, rotated = rotary.multimodal_rope(
        q, k, cos.detach(), sin.detach(), mrope_section, unsqueeze_dim=unsqueeze_dim
    )
    assert rotated is not None
    return q, rotated


def liger_llama4_rope(
    q: Tensor, k: Tensor, freqs_cis: Tensor, BLOCK_SIZE: int | None = None
) -> tuple[Tensor, Tensor]:
    """`liger_rope.complex_rope` of q and k [B, T, heads, D]."""
    if not freqs_cis.is_complex():
        freqs_cis = torch.complex(freqs_cis.float(), torch.zeros_like(freqs_cis, dtype=torch.float))
    q, rotated = rotary.complex_rope(q, k, freqs_cis.detach(), unsqueeze_dim=2)
    assert rotated is not None
    return q, rotated


liger_attn_res = missing_function("liger_attn_res", "liger-lab")
liger_fused_neighborhood_attention = missing_function(
    "liger_fused_neighborhood_attention", "liger-lab"
)
liger_mhc_apply = missing_function("liger_mhc_apply", "liger-lab")
liger_mhc_coeffs = missing_function("liger_mhc_coeffs", "liger-lab")
liger_mhc_forward = missing_function("liger_mhc_forward", "liger-lab")
liger_mhc_post_res = missing_function("liger_mhc_post_res", "liger-lab")
liger_mhc_pre = missing_function("liger_mhc_pre", "liger-lab")
liger_multi_token_attention = missing_function("liger_multi_token_attention", "liger-lab")
