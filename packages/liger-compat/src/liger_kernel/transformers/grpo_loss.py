"""Policy optimisation from logits that exist; `chunked_loss` has it from hidden states."""

from typing import Any

import torch
from liger_losses import log_probs
from liger_posttrain.algorithms import ALGORITHMS
from liger_posttrain.policy_objective import PolicyObjective
from liger_posttrain.reductions import token_weights
from torch import Tensor

from ..chunked_loss.grpo_loss import check_algorithm, dapo_normalizer, surrogate_options

__all__ = ["fused_selective_log_softmax", "grpo_loss", "triton_grpo_loss"]


def fused_selective_log_softmax(
    logits: Tensor, input_ids: Tensor, temperature: float = 0.9, mask: Tensor | None = None
) -> Tensor:
    """log p [B, L] of the last L of `input_ids`, from logits [B, L + 1, V]; 0 where the mask is."""
    L = logits.shape[1] - 1
    labels = input_ids[:, -L:]
    if mask is not None:
        labels = labels.masked_fill(mask[:, -L:] == 0, -100)
    return log_probs(logits[:, :-1], labels, logit_scale=1.0 / temperature).log_probs


def triton_grpo_loss(
    logits: Tensor, old_logp: Tensor | None, ref_logp: Tensor | None, completion_ids: Tensor,
    advantages: Tensor, completion_mask: Tensor | None = None, temperature: float = 0.9,
    beta: float = 0.04, eps_low: float = 0.2, eps_high: float = 0.4, inplace: bool = True,
    loss_type: str = "dapo", max_completion_length: int | None = None,
    importance_sampling_level: str = "token", reduce: bool = False,
    sapo_temperature_pos: float = 1.0, sapo_temperature_neg: float = 1.05,
    vllm_is_ratio: Tensor | None = None, delta: float | None = None,
    use_bias_correction_kl: bool = False, num_items_in_batch: Any = None,
    vespo_k_pos: float = 2.0, vespo_lambda_pos: float = 3.0, vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> Any:  # fmt: skip
    """The objective of `liger_posttrain.LinearGRPOLoss`, of completions [B, L] and logits
    [B, L + 1, V], which are never written.

    Returns (loss, [kl, clip ratio]) with `reduce`, without the KL where `beta` is 0; else
    (loss, kl or None, whether it was clipped) of each token [B, L].
    """
    assert importance_sampling_level in ("token", "sequence"), importance_sampling_level
    if loss_type not in ALGORITHMS:
        raise ValueError(f"loss_type must be one of {', '.join(ALGORITHMS)}, not {loss_type!r}")
    if delta is not None and ALGORITHMS[loss_type].surrogate != "clip":
        raise ValueError(f"{loss_type} has no delta")
    check_algorithm(loss_type, importance_sampling_level, completion_ids.shape[1])
    mask = torch.ones_like(completion_ids) if completion_mask is None else completion_mask
    counts = mask != 0
    objective = PolicyObjective(
        ALGORITHMS[loss_type].surrogate, importance_sampling_level,
        surrogate_options(
            loss_type, epsilon_low=eps_low, epsilon_high=eps_high, delta=delta,
            tau_pos=sapo_temperature_pos, tau_neg=sapo_temperature_neg, k_pos=vespo_k_pos,
            lambda_pos=vespo_lambda_pos, k_neg=vespo_k_neg, lambda_neg=vespo_lambda_neg,
        ),
        beta=beta, use_bias_correction_kl=use_bias_correction_kl,
    )  # fmt: skip
    labels = completion_ids.masked_fill(~counts, -100)
    stats = log_probs(logits[:, :-1], labels, logit_scale=1.0 / temperature)
    weights = counts.to(stats.log_probs.dtype).requires_grad_()
    if reduce:
        weights = token_weights(
            counts, ALGORITHMS[loss_type].reduction, max_completion_length=max_completion_length,
            normalizer=dapo_normalizer(loss_type, mask, num_items_in_batch),
        )  # fmt: skip
    if vllm_is_ratio is not None and vllm_is_ratio.ndim == 1:
        vllm_is_ratio = vllm_is_ratio[:, None]
    losses, aux = objective(
        stats, mask=counts, weights=weights, advantages=advantages[:, None],
        old_log_probs=old_logp, ref_log_probs=ref_logp, importance_sampling_ratio=vllm_is_ratio,
    )  # fmt: skip
    none = torch.zeros_like(counts)
    clipped = aux.get("clip_ratio/region", aux.get("cispo_clip_ratio", none)) & counts
    kl = (aux["kl"].detach() * counts) if beta != 0.0 else None
    if reduce:
        total = counts.sum().clamp(min=1)
        metrics = [clipped.sum() / total]
        return losses.sum(), metrics if kl is None else [kl.sum() / total, *metrics]
    # the sum is linear in the weights: its derivative by a weight is the loss of that token
    (each,) = torch.autograd.grad(losses.sum(), weights, create_graph=True)
    return each * counts, kl, clipped


def grpo_loss(
    logits: Tensor, old_logp: Tensor | None, ref_logp: Tensor | None, completion_ids: Tensor,
    advantages: Tensor, completion_mask: Tensor | None, temperature: float, beta: float,
    eps_low: float, eps_high: float, inplace: bool, loss_type: str = "grpo",
    max_completion_length: int | None = None, reduce: bool = True,
    importance_sampling_level: str = "token", sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05, vllm_is_ratio: Tensor | None = None,
    delta: float | None = None, use_bias_correction_kl: bool = False,
    num_items_in_batch: Any = None, phi_seq: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """`triton_grpo_loss` in another order; (loss, kl or None, clip ratio) in both cases."""
    if phi_seq is not None:
        raise NotImplementedError("phi_seq: triton_grpo_loss computes the weights of vespo itself")
    found = triton_grpo_loss(
        logits, old_logp, ref_logp, completion_ids, advantages, completion_mask, temperature, beta,
        eps_low, eps_high, inplace, loss_type, max_completion_length, importance_sampling_level,
        reduce, sapo_temperature_pos, sapo_temperature_neg, vllm_is_ratio, delta,
        use_bias_correction_kl, num_items_in_batch,
    )  # fmt: skip
    if not reduce:
        return found
    loss, metrics = found
    return loss, None if beta == 0.0 else metrics[0], metrics[-1]
