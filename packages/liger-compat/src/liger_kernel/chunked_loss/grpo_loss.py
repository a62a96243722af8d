"""Group relative policy optimisation and its kin."""

from typing import Any

import torch
import torch.distributed as dist
from liger_posttrain import LinearGRPOLoss
from liger_posttrain.algorithms import ALGORITHMS
from liger_posttrain.policy import SURROGATES
from torch import Tensor, nn

__all__ = [
    "LigerFusedLinearGRPOFunction", "LigerFusedLinearGRPOLoss", "check_algorithm",
    "dapo_normalizer", "liger_fused_linear_grpo", "surrogate_options",
]  # fmt: skip


def liger_fused_linear_grpo(
    _input: Tensor, weight: Tensor, selected_token_ids: Tensor, attention_mask: Tensor,
    advantages: Tensor, bias: Tensor | None = None, ref_per_token_logps: Tensor | None = None,
    old_per_token_logps: Tensor | None = None, ref_input: Tensor | None = None,
    ref_weight: Tensor | None = None, ref_bias: Tensor | None = None, beta: float = 0.04,
    epsilon_low: float = 0.2, epsilon_high: float = 0.2, loss_type: str = "dapo",
    max_completion_length: int | None = None, importance_sampling_level: str = "token",
    sapo_temperature_pos: float = 1.0, sapo_temperature_neg: float = 1.05,
    temperature: float = 1.0, compiled: bool = True, use_ref_model: bool = True,
    chunk_size: int = 1, vllm_is_ratio: Tensor | None = None, delta: float | None = None,
    use_bias_correction_kl: bool = False, vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0, vespo_k_neg: float = 3.0, vespo_lambda_neg: float = 2.0,
    num_items_in_batch: Any = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """`liger_posttrain.LinearGRPOLoss` of completions [B, T, H].

    Metrics are the mean KL where `beta` is not 0, and the share of tokens (of sequences, where the
    ratio is theirs) whose ratio was clipped.
    """
    check_algorithm(loss_type, importance_sampling_level, max_completion_length)
    if use_ref_model:
        assert ref_per_token_logps is not None or ref_input is not None, (
            "use_ref_model needs ref_per_token_logps, or ref_input and ref_weight"
        )
    reference: dict[str, Any] = {}
    if use_ref_model and ref_per_token_logps is not None:
        reference = {"ref_log_probs": ref_per_token_logps}
    elif use_ref_model:
        reference = {"ref_input": ref_input, "ref_weight": ref_weight, "ref_bias": ref_bias}
    loss = LinearGRPOLoss(
        loss_type=loss_type, importance_sampling_level=importance_sampling_level,
        # without a reference the KL is that from the policy itself: 0, without gradient
        beta=beta if use_ref_model else 0.0, use_bias_correction_kl=use_bias_correction_kl,
        max_completion_length=max_completion_length, temperature=temperature,
        **surrogate_options(
            loss_type, epsilon_low=epsilon_low, epsilon_high=epsilon_high, delta=delta,
            tau_pos=sapo_temperature_pos, tau_neg=sapo_temperature_neg, k_pos=vespo_k_pos,
            lambda_pos=vespo_lambda_pos, k_neg=vespo_k_neg, lambda_neg=vespo_lambda_neg,
        ),
    )  # fmt: skip
    total, found = loss(
        _input, weight, selected_token_ids, advantages=advantages, linear_bias=bias,
        mask=attention_mask, old_log_probs=old_per_token_logps,
        importance_sampling_ratio=vllm_is_ratio,
        normalizer=dapo_normalizer(loss_type, attention_mask, num_items_in_batch), **reference,
    )  # fmt: skip
    zero = torch.zeros_like(total)
    clipped = found.get("clip_ratio/region_mean", found.get("cispo_clip_ratio", zero))
    return total, (clipped,) if beta == 0.0 else (found.get("kl", zero), clipped)


def check_algorithm(
    loss_type: str, importance_sampling_level: str, max_completion_length: int | None
) -> None:
    if loss_type in ("cispo", "sapo", "vespo") and importance_sampling_level == "sequence":
        raise ValueError(f"{loss_type} has importance_sampling_level='token' only")
    assert loss_type != "dr_grpo" or max_completion_length is not None, (
        "dr_grpo needs max_completion_length"
    )


def surrogate_options(loss_type: str, **given: Any) -> dict[str, Any]:
    """Of all that callers pass, what the algorithm has; ValueError where it makes no sense."""
    row = ALGORITHMS.get(loss_type)
    # the loss itself knows how to refuse a name
    takes = () if row is None else SURROGATES[row.surrogate].loss.options
    for name in ("tau_pos", "tau_neg"):
        if name in takes and given[name] <= 0.0:
            raise ValueError(f"sapo temperatures must be positive: {given[name]}")
    return {name: value for name, value in given.items() if name in takes}


def dapo_normalizer(loss_type: str, mask: Tensor, num_items_in_batch: Any) -> Any:
    """Tokens of all ranks over their number, for the algorithms that are means over all of them;
    else None.
    """
    if loss_type not in ("dapo", "cispo", "vespo"):
        return None
    distributed = dist.is_available() and dist.is_initialized()
    if num_items_in_batch is None:
        if not distributed:
            return None
        total = mask.float().sum()
        dist.all_reduce(total)
    else:
        total = torch.as_tensor(num_items_in_batch, dtype=torch.float32, device=mask.device)
    return (total / (dist.get_world_size() if distributed else 1)).clamp(min=1.0)


class LigerFusedLinearGRPOFunction:
    apply = staticmethod(liger_fused_linear_grpo)


class LigerFusedLinearGRPOLoss(nn.Module):
    """`liger_fused_linear_grpo` with fixed options, called with the hidden states first."""

    def __init__(
        self, beta: float = 0.04, compiled: bool = True, use_ref_model: bool = True,
        chunk_size: int = 1, epsilon_low: float = 0.2, epsilon_high: float = 0.2,
        loss_type: str = "dapo", max_completion_length: int | None = None,
        importance_sampling_level: str = "token", sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05, temperature: float = 1.0, delta: float | None = None,
        use_bias_correction_kl: bool = False, vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0, vespo_k_neg: float = 3.0, vespo_lambda_neg: float = 2.0,
    ):  # fmt: skip
        super().__init__()
        self.options = {
            "beta": beta, "use_ref_model": use_ref_model, "epsilon_low": epsilon_low,
            "epsilon_high": epsilon_high, "loss_type": loss_type,
            "max_completion_length": max_completion_length,
            "importance_sampling_level": importance_sampling_level,
            "sapo_temperature_pos": sapo_temperature_pos,
            "sapo_temperature_neg": sapo_temperature_neg, "temperature": temperature,
            "delta": delta, "use_bias_correction_kl": use_bias_correction_kl,
            "vespo_k_pos": vespo_k_pos, "vespo_lambda_pos": vespo_lambda_pos,
            "vespo_k_neg": vespo_k_neg, "vespo_lambda_neg": vespo_lambda_neg,
        }  # fmt: skip
        for name, value in self.options.items():
            setattr(self, name, value)

    def forward(
        self, _input: Tensor, lin_weight: Tensor, selected_token_ids: Tensor,
        attention_mask: Tensor, advantages: Tensor, bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None, old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None, ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None, vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: Any = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
        # a trainer may change an option between steps
        options = {name: getattr(self, name) for name in self.options}
        return liger_fused_linear_grpo(
            _input, lin_weight, selected_token_ids, attention_mask, advantages, bias,
            ref_per_token_logps, old_per_token_logps, ref_input, ref_weight, ref_bias,
            vllm_is_ratio=vllm_is_ratio, num_items_in_batch=num_items_in_batch, **options,
        )  # fmt: skip
