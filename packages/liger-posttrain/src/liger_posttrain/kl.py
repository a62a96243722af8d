"""Estimators of KL(policy || reference) from one sample, its log-probability under both.

With d = log_ref - log_pi of a token drawn from the policy:

    k1 = -d;  k2 = d^2 / 2;  k3 = exp(d) - 1 - d

k1 and k3 are unbiased, k3 is never negative. Their gradients are another matter: that of k2 is the
gradient of the KL in expectation, those of k1 and k3 are not, which `bias_corrected` mends.

Source: Schulman 2020, http://joschu.net/blog/kl-approx.html
"""

import torch
from torch import Tensor

__all__ = ["KL_ESTIMATORS", "bias_corrected", "k1", "k2", "k3"]


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """log_pi - log_ref: unbiased, of either sign."""
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """(log_pi - log_ref)^2 / 2: biased, with the gradient of the KL for samples of the policy."""
    return 0.5 * (log_probs - ref_log_probs).square()


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """exp(d) - 1 - d with d = log_ref - log_pi: unbiased and never negative. GRPO's, and TRL's."""
    d = ref_log_probs - log_probs
    return torch.expm1(d) - d


def bias_corrected(kl: Tensor, ratio: Tensor) -> Tensor:
    """ratio * kl, with the gradient flowing through both: unbiased for samples of the old policy,
    and so is its gradient.

    Source: DeepSeek-V3.2, arXiv:2512.02556.
    """
    return ratio * kl


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
