"""What the losses of labels make of their tokens: which count, what each weighs, what the sum is
divided by, and what is worth knowing besides the loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_frozen, mean_scale
from .row_loss import Settings

__all__ = [
    "CrossEntropyMetrics", "Tokens", "half_factor", "metrics_of", "shifted", "tokens_of",
    "weighted",
]  # fmt: skip

# what probabilities of tokens are multiplied by: they are small, and p (1 - p) at most 1 / 4
_PROBABILITY = 2.0**13


class CrossEntropyMetrics(NamedTuple):
    """A cross entropy and what training logs beside it; of these, `loss` alone has a gradient.

    Args:
        loss: as the function without metrics returns it.
        z_loss: what the z-loss contributes to it, likewise.
        log_probs: log-probability of each target, without smoothing and weights; fp32 (fp64 for
            float64) in the shape of the targets, as the next two.
        lse: log(sum_j exp(z_j)) of each token's logits z.
        argmax: the first class of the largest z, int64.
        accuracy: share of the tokens that count whose argmax is the target, 0-d; 0 where none does.
        num_tokens: how many tokens count, 0-d, int64.

    Tokens that do not count have zeros, and -1 as argmax.
    """

    loss: Tensor
    z_loss: Tensor
    log_probs: Tensor
    lse: Tensor
    argmax: Tensor
    accuracy: Tensor
    num_tokens: Tensor


def weighted(loss: Tensor, token_weight: Tensor | None, log_prob: Tensor | None = None) -> Tensor:
    """Losses times the weight [M] of each, or times exp(log_prob), a constant, or as they are."""
    if log_prob is not None:
        token_weight = log_prob.detach().exp()
    return loss if token_weight is None else loss * token_weight


def half_factor(scale: Tensor, token_weight: Tensor | None, by_probability: bool) -> Tensor:
    """What fp16 gradients are multiplied by until the backward, which knows the loss scale, in
    place of `scale`: by that of a mean they underflow. With weights of tokens a power of two, 0-d.
    """
    factor = torch.full_like(scale, _PROBABILITY if by_probability else 1.0)
    if token_weight is None or not token_weight.numel():
        return factor
    largest = token_weight.abs().amax()
    # exact, as log2 of a power of two need not be
    _, exponent = torch.frexp(largest)
    return factor.where(largest == 0, torch.exp2(-exponent.to(factor.dtype)))


class Tokens(NamedTuple):
    """M tokens: the labels to predict, [M]; the factor of each loss, [M], None for 1, or that it is
    the label's probability; what the sum is multiplied by, 0-d; how, and in which shape, losses are
    returned.
    """

    target: Tensor
    weight: Tensor | None
    by_probability: bool
    scale: Tensor
    reduction: str
    shape: torch.Size

    def reduced(self, losses: Tensor, log_prob: Tensor | None) -> Tensor:
        """Losses [M] of tokens as the loss."""
        losses = weighted(losses, self.weight, log_prob if self.by_probability else None)
        return losses.reshape(self.shape) if self.reduction == "none" else losses.sum() * self.scale


def shifted(labels: Tensor, fill: float) -> Tensor:
    """For each position of the last dimension what the next one holds, `fill` for the last."""
    following = labels.roll(-1, -1)
    following[..., -1:] = fill
    return following


def tokens_of(
    name: str, target: Tensor, weight: Tensor | None, token_weight: Tensor | str | None,
    reduction: str, normalizer: float | Tensor | None, shift_labels: bool, ignore_index: int,
    dtype: torch.dtype,
) -> Tokens:  # fmt: skip
    """Checks and prepares what tokens weigh; `weight` is that of classes, `dtype` that of sums."""
    by_probability = isinstance(token_weight, str)
    if by_probability and token_weight != "probability":
        raise ValueError(
            f"{name}: token_weight must be a tensor or 'probability', not {token_weight!r}"
        )
    factor = token_weight if isinstance(token_weight, Tensor) else None
    if factor is not None and (factor.shape != target.shape or factor.device != target.device):
        raise ValueError(
            f"{name}: token_weight {tuple(factor.shape)} on {factor.device} must be as target, "
            f"{tuple(target.shape)} on {target.device}"
        )
    check_frozen(name, token_weight=factor)
    if shift_labels:
        if not target.ndim:
            raise ValueError(f"{name}: shift_labels=True needs a target with a dimension to shift")
        target = shifted(target, ignore_index)
        factor = None if factor is None else shifted(factor, 0)
    shape, target = target.shape, target.reshape(-1).contiguous()
    if factor is not None:
        # whatever it is where no token counts
        factor = factor.reshape(-1).to(dtype).where(target != ignore_index, 0.0)
    if reduction == "mean":
        scale = mean_scale(target, weight, ignore_index, normalizer, dtype, factor)
    else:
        scale = torch.ones((), dtype=dtype, device=target.device)
    return Tokens(target, factor, by_probability, scale, reduction, shape)


def metrics_of(
    loss: Tensor, tokens: Tokens, settings: Settings, lse: Tensor, log_prob: Tensor, argmax: Tensor
) -> CrossEntropyMetrics:
    """The loss among statistics [M] of its tokens."""
    lse, log_prob, argmax = (t.detach() for t in (lse, log_prob, argmax))
    z_loss = tokens.reduced(settings.z_loss * lse.square(), log_prob)
    counts = tokens.target != settings.ignore_index
    count = counts.sum()
    right = (counts & (argmax == tokens.target)).sum().to(lse.dtype)
    log_prob, lse, argmax = (t.reshape(tokens.shape) for t in (log_prob, lse, argmax))
    accuracy = right / count.clamp(min=1)
    return CrossEntropyMetrics(loss, z_loss, log_prob, lse, argmax, accuracy, count)
