"""The cross entropies of `functional`: those of `liger_losses` under other names and orders."""

import math
from dataclasses import dataclass
from typing import Any

import liger_losses
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CrossEntropyOutput",
    "check_loss_options",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "liger_fused_linear_scaled_cross_entropy",
    "liger_fused_linear_scaled_cross_entropy_tp",
    "liger_vocab_parallel_cross_entropy",
]


@dataclass
class CrossEntropyOutput:
    """The loss, and what was asked for besides, without gradient."""

    loss: Tensor
    z_loss: Tensor | None = None
    token_accuracy: Tensor | None = None
    predicted_tokens: Tensor | None = None


def check_loss_options(label_smoothing: float, reduction: str, softcap: float | None) -> None:
    """AssertionError for what the constructors of both cross entropies do not take."""
    assert 0.0 <= label_smoothing <= 1.0, f"label_smoothing must be in [0, 1]: {label_smoothing}"
    assert reduction in ("mean", "sum", "none"), f"reduction must be mean, sum or none: {reduction}"
    assert softcap is None or softcap > 0.0, f"softcap must be positive or None: {softcap}"


def liger_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None,
    ignore_index: int = -100, reduce: Any = None, reduction: str = "mean",
    label_smoothing: float = 0.0, lse_square_scale: float = 0.0, softcap: float | None = None,
    return_z_loss: bool = False, return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
) -> Any:  # fmt: skip
    """`liger_losses.cross_entropy`. The input is never written."""
    options: dict[str, Any] = {
        "ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing,
        "z_loss": lse_square_scale, "softcap": softcap,
    }  # fmt: skip
    wanted = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    if not any(wanted):
        return liger_losses.cross_entropy(input, target, weight, **options)
    found = liger_losses.cross_entropy_with_metrics(input, target, weight=weight, **options)
    return _output(found, target, reduction, wanted)


def liger_fused_linear_cross_entropy(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None,
    ce_weight: Tensor | None = None, ignore_index: int = -100, lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0, reduction: str = "mean", softcap: float | None = None,
    return_z_loss: bool = False, accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False, return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False, chunk_mem_const: int = 1,
) -> Any:  # fmt: skip
    """`liger_losses.linear_cross_entropy`, which chooses chunks and accumulators by itself.

    With `use_token_scaling` the loss of each token is multiplied by the probability of its target,
    a constant.
    """
    if not isinstance(chunk_mem_const, int) or chunk_mem_const < 1:
        raise ValueError(f"chunk_mem_const must be a positive integer: {chunk_mem_const!r}")
    options: dict[str, Any] = {
        "linear_bias": bias, "weight": ce_weight, "ignore_index": ignore_index,
        "reduction": reduction, "label_smoothing": label_smoothing, "z_loss": lse_square_scale,
        "softcap": softcap, "token_weight": "probability" if use_token_scaling else None,
    }  # fmt: skip
    wanted = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    if not any(wanted):
        return liger_losses.linear_cross_entropy(input, weight, target, **options)
    found = liger_losses.linear_cross_entropy_with_metrics(input, weight, target, **options)
    return _output(found, target, reduction, wanted)


def _output(
    found: liger_losses.CrossEntropyMetrics, target: Tensor, reduction: str,
    wanted: tuple[bool, bool, bool],
) -> CrossEntropyOutput:  # fmt: skip
    z_loss, accuracy, predicted = wanted
    each = found.argmax.eq(target).float()
    return CrossEntropyOutput(
        found.loss,
        found.z_loss if z_loss else None,
        (each if reduction == "none" else found.accuracy) if accuracy else None,
        found.argmax if predicted else None,
    )


def liger_fused_linear_scaled_cross_entropy(
    input: Tensor, weight: Tensor, target: Tensor, temperature: float = 1.0,
    ignore_index: int = -100, m_tiles_per_cluster: int = 1, return_entropy: bool = False,
    selected_token_ids: Tensor | None = None,
) -> Any:  # fmt: skip
    """`liger_losses.linear_log_probs` at a temperature: -log p of each target, then the entropy and
    log-probabilities [M, K] of selected tokens where they are asked for; all with gradient.
    """
    _check_temperature(temperature)
    if m_tiles_per_cluster < 1:
        raise ValueError(f"m_tiles_per_cluster must be at least 1: {m_tiles_per_cluster}")
    stats = liger_losses.linear_log_probs(
        input, weight, target, ignore_index=ignore_index, logit_scale=1.0 / temperature,
        statistics=("entropy",) if return_entropy else (),
    )  # fmt: skip
    outputs = [-stats.log_probs]
    if stats.entropy is not None:
        outputs.append(stats.entropy)
    if selected_token_ids is not None:
        logits = F.linear(input, weight[selected_token_ids]).float() / temperature
        counts = (target != ignore_index)[:, None]
        outputs.append((logits - stats.lse[:, None]).where(counts, 0.0))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def liger_fused_linear_scaled_cross_entropy_tp(
    input: Tensor, weight: Tensor, target: Tensor, tp_group: Any, temperature: float = 1.0,
    ignore_index: int = -100, tiles_per_reduce: int = 1, return_entropy: bool = False,
) -> Any:  # fmt: skip
    """The same where each rank of the group has a shard of the head's rows."""
    _check_temperature(temperature)
    if tiles_per_reduce not in (1, 2, 4):
        raise ValueError(f"tiles_per_reduce must be 1, 2 or 4: {tiles_per_reduce}")
    if _alone(tp_group):
        return liger_fused_linear_scaled_cross_entropy(
            input, weight, target, temperature, ignore_index, return_entropy=return_entropy
        )
    if return_entropy:
        raise NotImplementedError("return_entropy over several ranks: liger-losses will have it")
    return liger_losses.vocab_parallel_linear_cross_entropy(
        input, weight, target, ignore_index=ignore_index, reduction="none",
        logit_scale=1.0 / temperature, **_shard(tp_group, len(weight)),
    )  # fmt: skip


def liger_vocab_parallel_cross_entropy(
    vocab_parallel_logits: Tensor, target: Tensor, tp_group: Any, ignore_index: int,
    label_smoothing: float, label_smoothing_formula: str, label_smoothing_mode: str,
) -> Tensor:  # fmt: skip
    """Cross entropy [S, B] of logits [S, B, V], or of a shard of them, [S, B, V / ranks].

    Megatron's smoothing spreads its share over the V - 1 other classes.
    """
    shard: dict[str, Any] = {}
    size = vocab_parallel_logits.shape[-1]
    if not _alone(tp_group):
        shard = _shard(tp_group, size)
        size = shard["vocab_size"]
        if label_smoothing and label_smoothing_mode == "partition":
            raise NotImplementedError(
                "label_smoothing_mode='partition' gives every rank another loss; use 'global'"
            )
    if label_smoothing_formula == "megatron":
        label_smoothing = label_smoothing * size / (size - 1)
    logits, labels = vocab_parallel_logits.flatten(0, -2), target.flatten()
    function = liger_losses.vocab_parallel_cross_entropy if shard else liger_losses.cross_entropy
    loss = function(
        logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing,
        reduction="none", **shard,
    )  # fmt: skip
    return loss.view(target.shape)


def _alone(tp_group: Any) -> bool:
    return tp_group is None or tp_group.size() == 1


def _shard(tp_group: Any, rows: int) -> dict[str, Any]:
    """Equal ones, in the order of ranks."""
    return {
        "group": tp_group,
        "vocab_start": tp_group.rank() * rows,
        "vocab_size": tp_group.size() * rows,
    }


def _check_temperature(temperature: float) -> None:
    if not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature must be a number, not {type(temperature).__name__}")
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature must be finite and positive: {temperature}")
