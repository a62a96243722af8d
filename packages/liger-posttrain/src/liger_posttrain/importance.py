"""Importance ratios: of the policy to the one before, of that to the sampler; and the tokens and
sequences that are left out.

`log_ratio` is log pi - log pi_old, [..., T]; `mask` [..., T] is true for tokens that count.
"""

import torch
from torch import Tensor

__all__ = [
    "LEVELS", "SAMPLER_MODES", "high_entropy_mask", "off_policy_mask", "sampler_ratio",
    "sequence_level", "sequence_sum_level", "sequence_token_level", "token_level",
]  # fmt: skip


def token_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Each token its own: GRPO, DAPO. [..., T]"""
    return log_ratio


def sequence_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of a sequence: GSPO, arXiv:2507.18071. [..., 1]"""
    return (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)


def sequence_sum_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """That of the whole sequence: RLOO, arXiv:2402.14740. [..., 1]"""
    return (log_ratio * mask).sum(-1, keepdim=True)


def sequence_token_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The value of the sequence, the gradient of each token: GSPO-token, arXiv:2507.18071.
    [..., T]
    """
    return sequence_level(log_ratio, mask).detach() + log_ratio - log_ratio.detach()


LEVELS = {
    "token": token_level,
    "sequence": sequence_level,
    "sequence_sum": sequence_sum_level,
    "sequence_token": sequence_token_level,
}
SAMPLER_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def sampler_ratio(
    old_log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, *, mode: str = "sequence_mask",
    clip_min: float | None = None, clip_max: float | None = 3.0,
) -> Tensor:  # fmt: skip
    """pi_old / pi_sampler, by which the loss of a token is multiplied where an inference engine
    drew the samples with log-probabilities of its own.

    Args:
        old_log_probs: of the training engine, [B, T].
        sampler_log_probs: of the inference engine, [B, T]; NaN, unknown, counts as the same.
        mask: tokens that count, [B, T].
        mode: the ratio of a "token" or of the whole "sequence" is clamped to the bounds
            ("truncate"), or 0 outside of them ("mask").
        clip_min, clip_max: bounds, or None.

    Returns:
        [B, T], or [B, 1] for sequences, without gradient.

    Source: truncated: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy
    RL Training; masked: Liu et al. 2025, When Speed Kills Stability. Modes and bounds as in TRL.
    """
    if mode not in SAMPLER_MODES:
        raise ValueError(f"sampler_ratio: mode must be one of {SAMPLER_MODES}, not {mode!r}")
    level, action = mode.split("_")
    with torch.no_grad():
        log_ratio = ((old_log_probs - sampler_log_probs) * mask).nan_to_num(nan=0.0)
        ratio = (log_ratio if level == "token" else log_ratio.sum(-1, keepdim=True)).exp()
        if action == "truncate":
            return ratio.clamp(clip_min, clip_max)
        outside = ratio.new_zeros(ratio.shape, dtype=torch.bool)
        outside = outside if clip_min is None else outside | (ratio < clip_min)
        outside = outside if clip_max is None else outside | (ratio > clip_max)
        return ratio.masked_fill(outside, 0.0)


def off_policy_mask(
    log_probs: Tensor, sampler_log_probs: Tensor, advantages: Tensor, mask: Tensor, *,
    threshold: float,
) -> Tensor:  # fmt: skip
    """Keeps a sequence of negative advantage only while the mean over its tokens of
    log pi_sampler - log pi is at most `threshold`. [..., T], without gradient.

    Source: DeepSeek-V3.2, arXiv:2512.02556.
    """
    with torch.no_grad():
        drift = sequence_level((sampler_log_probs - log_probs).nan_to_num(nan=0.0), mask)
        return (advantages >= 0) | (drift <= threshold)


def high_entropy_mask(
    entropy: Tensor, mask: Tensor, *, quantile: float | None = None,
    threshold: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The tokens that count and whose entropy is at least `threshold`, or in the topmost `quantile`
    of all that count, with linear interpolation. No gradient, no look at the device.

    Source: Wang et al. 2025, arXiv:2506.01939.
    """
    if threshold is None:
        if quantile is None:
            raise ValueError("high_entropy_mask: give quantile or threshold")
        known = entropy.detach().masked_fill(mask == 0, float("nan")).flatten()
        # a quantile of nothing raises, that of no number is NaN
        known = torch.cat([known, known.new_full((1,), float("nan"))])
        threshold = torch.nanquantile(known, 1.0 - quantile)
    return (entropy.detach() >= threshold) & (mask != 0)
