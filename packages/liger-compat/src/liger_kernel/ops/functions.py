"""The autograd Functions of the library: classes whose `apply` takes its arguments in its order.

Each is a function of `liger_kernel.transformers` that goes by that order; the Liger packages bring
their own autograd Functions.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from liger_activations import tiled_mlp
from torch import Tensor, nn

from ..transformers import (
    functional,
    functional_divergences as divergences,
    functional_losses as losses,
    grpo_loss,
)

__all__ = ["TABLE", "apply_tiled_mlp"]


def apply_tiled_mlp(
    fn: Callable[[nn.Module, Tensor], Tensor], mlp_module: nn.Module, x: Tensor,
    num_shards: int | None = None, compute_params: Any = None,
) -> Tensor:  # fmt: skip
    """fn(mlp_module, x) over tiles of tokens, on `liger_activations.tiled_mlp`."""
    return tiled_mlp(lambda tile: fn(mlp_module, tile), x, num_shards, module=mlp_module)


def _mlp(
    input: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor,
    gate_multiplier: float = 1.0, down_multiplier: float = 1.0,
) -> Tensor:  # fmt: skip
    gate, up = F.linear(input, gate_weight), F.linear(input, up_weight)
    return F.linear(
        functional.liger_swiglu(gate, up, gate_multiplier, down_multiplier), down_weight
    )


def _cross_entropy(
    _input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100,
    lse_square_scale: float = 0.0, label_smoothing: float = 0.0, reduction: str = "mean",
    softcap: float | None = None, return_z_loss: bool = False,
    return_token_accuracy: bool = False, return_predicted_tokens: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    return _four(losses.liger_cross_entropy(
        _input, target, weight, None, ignore_index, None, reduction, label_smoothing,
        lse_square_scale, softcap, return_z_loss, return_token_accuracy, return_predicted_tokens,
    ))  # fmt: skip


def _fused_linear_cross_entropy(
    _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None,
    ce_weight: Tensor | None = None, ignore_index: int = -100, lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0, reduction: str = "mean", softcap: float | None = None,
    return_z_loss: bool = False, accum_dtype: Any = None, use_token_scaling: bool = False,
    return_token_accuracy: bool = False, return_predicted_tokens: bool = False,
    ce_impl: Any = None, ce_mode: Any = None, chunk_mem_const: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    return _four(losses.liger_fused_linear_cross_entropy(
        _input, weight, target, bias, ce_weight, ignore_index, lse_square_scale, label_smoothing,
        reduction, softcap, return_z_loss, accum_dtype, use_token_scaling, return_token_accuracy,
        return_predicted_tokens, chunk_mem_const,
    ))  # fmt: skip


def _four(result: Any) -> tuple[Any, ...]:
    if isinstance(result, losses.CrossEntropyOutput):
        return result.loss, result.z_loss, result.token_accuracy, result.predicted_tokens
    return result, None, None, None


def _jsd(
    _input: Tensor, target: Tensor, shift_labels: Tensor | None = None, beta: float = 0.5,
    ignore_index: int = -100, jsd_impl: Any = None, jsd_mode: Any = None,
) -> Tensor:  # fmt: skip
    return divergences.liger_jsd(_input, target, shift_labels, beta, ignore_index)


def _fused_linear_jsd(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor,
    shift_labels: Tensor | None = None, jsd_beta: float = 0.5, ignore_index: int = -100,
    temperature: float = 1.0, accum_dtype: Any = None, jsd_impl: Any = None, jsd_mode: Any = None,
) -> Tensor:  # fmt: skip
    return divergences.liger_fused_linear_jsd(
        student_input, student_weight, teacher_input, teacher_weight, shift_labels, jsd_beta,
        ignore_index, temperature,
    )  # fmt: skip


def _kl_div(
    y_pred: Tensor, y_true: Tensor, reduction: str = "batchmean", log_target: bool = False,
    eps: float = 1e-10,
) -> Tensor:  # fmt: skip
    return divergences.liger_kl_div(y_pred, y_true, reduction=reduction, log_target=log_target)


def _tvd(
    p: Tensor, q: Tensor, shift_labels: Tensor | None = None, reduction: str = "batchmean",
    ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    return divergences.liger_tvd(p, q, shift_labels, reduction, ignore_index)


def _modulated_rms_norm(
    X: Tensor, W: Tensor | None, scale: Tensor, shift: Tensor | None, eps: float,
    offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True,
) -> Tensor:  # fmt: skip
    return functional.liger_modulated_rms_norm(X, W, scale, shift, eps, offset, casting_mode)


def _tiled_mlp(
    fn: Callable[[nn.Module, Tensor], Tensor], mlp_module: nn.Module, x: Tensor, shards: int,
    compute_params: Any = None,
) -> Tensor:  # fmt: skip
    return apply_tiled_mlp(fn, mlp_module, x, shards)


# (submodule, Function) -> what it applies
TABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ("cross_entropy", "LigerCrossEntropyFunction"): _cross_entropy,
    ("dyt", "LigerDyTFunction"): functional.liger_dyt,
    ("fused_add_rms_norm", "LigerFusedAddRMSNormFunction"): functional.liger_fused_add_rms_norm,
    ("fused_ce_tvd", "LigerFusedCETVDFunction"): divergences.liger_fused_ce_tvd,
    ("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction"):
        _fused_linear_cross_entropy,
    ("fused_linear_jsd", "LigerFusedLinearJSDFunction"): _fused_linear_jsd,
    ("fused_linear_kl_div", "LigerFusedLinearKLDivFunction"):
        divergences.liger_fused_linear_kl_div,
    ("fused_linear_scaled_cross_entropy", "LigerFusedLinearScaledCrossEntropyFunction"):
        losses.liger_fused_linear_scaled_cross_entropy,
    ("fused_linear_scaled_cross_entropy", "LigerFusedLinearScaledCrossEntropyTPFunction"):
        losses.liger_fused_linear_scaled_cross_entropy_tp,
    ("geglu", "LigerGELUMulFunction"): functional.liger_geglu,
    ("group_norm", "LigerGroupNormFunction"): functional.liger_group_norm,
    ("grpo_loss", "GrpoLossFunction"): grpo_loss.grpo_loss,
    ("jsd", "LigerJSDFunction"): _jsd,
    ("kl_div", "LigerKLDivLossFunction"): _kl_div,
    ("layer_norm", "LigerLayerNormFunction"): functional.liger_layer_norm,
    ("llama4_rope", "LigerLlama4RopeFunction"): functional.liger_llama4_rope,
    ("mlp", "LigerMLPFunction"): _mlp,
    ("modulated_rms_norm", "LigerModulatedRMSNormFunction"): _modulated_rms_norm,
    ("poly_norm", "LigerPolyNormFunction"): functional.liger_poly_norm,
    ("qwen2vl_mrope", "LigerQwen2VLMRopeFunction"): functional.liger_qwen2vl_mrope,
    ("relu_squared", "LigerReLUSquaredFunction"): functional.liger_relu_squared,
    ("rms_norm", "LigerRMSNormFunction"): functional.liger_rms_norm,
    ("rope", "LigerRopeFunction"): functional.liger_rope,
    ("softmax", "LigerSoftmaxFunction"): functional.liger_softmax,
    ("sparsemax", "LigerSparsemaxFunction"): functional.liger_sparsemax,
    ("swiglu", "LigerFusedGateUpSiLUMulFunction"): functional.liger_fused_gate_up_swiglu,
    ("swiglu", "LigerSiLUMulFunction"): functional.liger_swiglu,
    ("tiled_mlp", "LigerTiledMLPFunction"): _tiled_mlp,
    ("tvd", "LigerTVDLossFunction"): _tvd,
    ("vocab_parallel_cross_entropy", "LigerVocabParallelCEFunction"):
        losses.liger_vocab_parallel_cross_entropy,
}  # fmt: skip
