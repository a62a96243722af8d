"""The causal-LM loss of a model from its hidden states and the head's weight."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import functional as F
from ..functional import CrossEntropyOutput

__all__ = [
    "LigerForCausalLMLoss",
    "fixed_fused_linear_cross_entropy",
    "unpack_cross_entropy_result",
]


def unpack_cross_entropy_result(
    result: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(loss, z_loss, token_accuracy, predicted_tokens), None for those that are not there."""
    if isinstance(result, CrossEntropyOutput):
        result = (result.loss, result.z_loss, result.token_accuracy, result.predicted_tokens)
    parts = [*result] if isinstance(result, tuple) else [result]
    loss, z_loss, accuracy, predicted = [*parts, None, None, None][:4]
    return loss, z_loss, accuracy, predicted


def fixed_fused_linear_cross_entropy(
    hidden_states: Tensor, lm_head_weight: Tensor, target: Tensor,
    num_items_in_batch: Any = None, ignore_index: int = -100,
    final_logit_softcapping: float | None = None, accum_dtype: torch.dtype | None = None,
    return_token_accuracy: bool = False, return_predicted_tokens: bool = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """The sum over tokens divided by `num_items_in_batch`; without it, their mean."""
    result = F.liger_fused_linear_cross_entropy(
        hidden_states, lm_head_weight, target, ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
        softcap=final_logit_softcapping, accum_dtype=accum_dtype,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens, **kwargs,
    )  # fmt: skip
    loss, _, accuracy, predicted = unpack_cross_entropy_result(result)
    if num_items_in_batch is not None:
        loss = loss / num_items_in_batch
    if return_token_accuracy or return_predicted_tokens:
        return CrossEntropyOutput(loss, None, accuracy, predicted)
    return loss


def LigerForCausalLMLoss(
    hidden_states: Tensor, lm_head_weight: Tensor, labels: Tensor | None, hidden_size: int,
    num_items_in_batch: Any = None, ignore_index: int = -100, shift_labels: Tensor | None = None,
    final_logit_softcapping: float | None = None, return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """`fixed_fused_linear_cross_entropy` of the next token's label, or of `shift_labels`.

    Models hand their callers' keywords on to it: those that are no options of the loss are dropped.
    """
    known = inspect.signature(F.liger_fused_linear_cross_entropy).parameters
    options = {name: value for name, value in kwargs.items() if name in known}
    if shift_labels is None:
        assert labels is not None, "labels or shift_labels are needed"
        shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return fixed_fused_linear_cross_entropy(
        hidden_states.reshape(-1, hidden_size), lm_head_weight,
        shift_labels.reshape(-1).to(hidden_states.device), num_items_in_batch, ignore_index,
        final_logit_softcapping, return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens, **options,
    )  # fmt: skip
