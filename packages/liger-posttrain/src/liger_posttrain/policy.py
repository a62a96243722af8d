"""Surrogates of policy optimisation: a loss for each token, to be minimised, unreduced.

A function takes those of these that it names, and options by keyword:

    ratio       pi / pi_old at the level of the algorithm (`importance`), [..., T] or [..., 1]
    log_ratio   log pi - log pi_old of each token, [..., T]
    log_probs   log pi of each token, [..., T]
    advantages  A, [..., T], no gradient
    mask        tokens that count, [..., T]; naming it asks for whole sequences
    importance_sampling_ratio  pi_old / pi_sampler, [..., T], or None; unless a function names it,
                its loss is multiplied by it

Beside a surrogate stands what a trainer logs of it. A new surrogate is a function and a row.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .options import Formula

__all__ = ["SURROGATES", "Surrogate", "cispo", "clip", "gmpo", "reinforce", "sapo", "vespo"]


def clip(
    ratio: Tensor, advantages: Tensor, *, epsilon_low: float = 0.2, epsilon_high: float = 0.2,
    delta: float | None = None,
) -> Tensor:  # fmt: skip
    """-min(min(r, delta) A, clamp(r, 1 - epsilon_low, 1 + epsilon_high) A)

    With `delta`, the loss of a token of negative advantage is bounded too: two-sided clipping, or
    dual clip, whose c is delta.

    Source: PPO, arXiv:1707.06347; both epsilons: DAPO, arXiv:2503.14476; dual clip:
    arXiv:1912.09729; delta: INTELLECT-2, arXiv:2505.07291.
    """
    clamped = ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantages, clamped * advantages)


def clip_regions(
    ratio: Tensor, advantages: Tensor, *, epsilon_low: float = 0.2, epsilon_high: float = 0.2,
    delta: float | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Where the clamp takes the gradient away."""
    low = (ratio < 1.0 - epsilon_low) & (advantages < 0)
    high = (ratio > 1.0 + epsilon_high) & (advantages > 0)
    return {"clip_ratio/low": low, "clip_ratio/high": high, "clip_ratio/region": low | high}


def cispo(
    ratio: Tensor, log_probs: Tensor, advantages: Tensor, *, epsilon_high: float = 5.0
) -> Tensor:
    """-sg(min(r, epsilon_high)) A log pi, sg without gradient: every token keeps one.

    Source: MiniMax-M1, arXiv:2506.13585, whose bound is 1 + epsilon_high; as in ScaleRL,
    arXiv:2510.13786, and TRL the bound here is epsilon_high itself.
    """
    return -ratio.detach().clamp(max=epsilon_high) * advantages * log_probs


def cispo_regions(
    ratio: Tensor, advantages: Tensor, *, epsilon_high: float = 5.0
) -> dict[str, Tensor]:
    return {"cispo_clip_ratio": (ratio > epsilon_high) & (advantages > 0)}


def sapo(
    ratio: Tensor, advantages: Tensor, *, tau_pos: float = 1.0, tau_neg: float = 1.05
) -> Tensor:
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau = tau_pos where A > 0 and tau_neg elsewhere: a smooth
    gate in place of the clamp.

    Source: SAPO, arXiv:2511.20347.
    """
    tau = torch.where(advantages > 0, ratio.new_full((), tau_pos), tau_neg)
    return -torch.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau * advantages


def vespo_weight(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor,
    importance_sampling_ratio: Tensor | None = None, *, k_pos: float = 2.0, lambda_pos: float = 3.0,
    k_neg: float = 3.0, lambda_neg: float = 2.0,
) -> Tensor:  # fmt: skip
    """phi(w) = w^k exp(lambda (1 - w)) of the ratio w of the whole sequence to its sampler, with k
    and lambda for advantages >= 0 and < 0. [..., T], without gradient.

    w is kept in [1e-8, e^20], as in TRL.
    """
    with torch.no_grad():
        floor = math.log(1e-8)
        log_w = (log_ratio.clamp(-20.0, 20.0) * mask).sum(-1, keepdim=True)
        if importance_sampling_ratio is not None:
            correction = importance_sampling_ratio.log().clamp(floor, 20.0)
            # of tokens, or of the sequence already
            if correction.shape[-1] == mask.shape[-1]:
                correction = (correction * mask).sum(-1, keepdim=True)
            log_w = log_w + correction
        log_w = log_w.clamp(floor, 20.0)
        k = torch.where(advantages >= 0, log_w.new_full((), k_pos), k_neg)
        decay = torch.where(advantages >= 0, log_w.new_full((), lambda_pos), lambda_neg)
        decay = decay.clamp(min=1e-4)
        phi = (decay + k * log_w - decay * log_w.exp()).exp()
        return phi.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def vespo(
    log_ratio: Tensor, log_probs: Tensor, advantages: Tensor, mask: Tensor,
    importance_sampling_ratio: Tensor | None = None, *, k_pos: float = 2.0, lambda_pos: float = 3.0,
    k_neg: float = 3.0, lambda_neg: float = 2.0,
) -> Tensor:  # fmt: skip
    """-phi(w) A log pi, phi as in `vespo_weight`.

    Source: VESPO, arXiv:2602.10693.
    """
    phi = vespo_weight(
        log_ratio, advantages, mask, importance_sampling_ratio, k_pos=k_pos, lambda_pos=lambda_pos,
        k_neg=k_neg, lambda_neg=lambda_neg,
    )  # fmt: skip
    return -phi * advantages * log_probs


def vespo_phi(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor,
    importance_sampling_ratio: Tensor | None = None, *, k_pos: float = 2.0, lambda_pos: float = 3.0,
    k_neg: float = 3.0, lambda_neg: float = 2.0,
) -> dict[str, Tensor]:  # fmt: skip
    phi = vespo_weight(
        log_ratio, advantages, mask, importance_sampling_ratio, k_pos=k_pos, lambda_pos=lambda_pos,
        k_neg=k_neg, lambda_neg=lambda_neg,
    )  # fmt: skip
    return {"vespo/phi_seq_mean": phi}


def gmpo(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, *, epsilon_low: float = 0.4,
    epsilon_high: float = 0.4,
) -> Tensor:  # fmt: skip
    """-exp(mean over tokens of c) A, c = min(log r, clamp(log r, -epsilon_low, epsilon_high)) where
    A > 0 and max(...) elsewhere: the geometric mean of clipped ratios. [..., T], each token of a
    sequence the same.

    Source: GMPO, arXiv:2507.20673.
    """
    clamped = log_ratio.clamp(-epsilon_low, epsilon_high)
    low, high = torch.minimum(log_ratio, clamped), torch.maximum(log_ratio, clamped)
    clipped = torch.where(advantages > 0, low, high) * mask
    mean = clipped.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return -mean.exp() * advantages


def gmpo_regions(
    log_ratio: Tensor, advantages: Tensor, *, epsilon_low: float = 0.4, epsilon_high: float = 0.4
) -> dict[str, Tensor]:
    low = (log_ratio < -epsilon_low) & (advantages < 0)
    high = (log_ratio > epsilon_high) & (advantages > 0)
    return {"clip_ratio/low": low, "clip_ratio/high": high, "clip_ratio/region": low | high}


def reinforce(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-A log pi: no ratio.

    Source: Williams 1992, doi:10.1007/BF00992696.
    """
    return -advantages * log_probs


def nothing() -> dict[str, Tensor]:
    return {}


class Surrogate(NamedTuple):
    """A loss for each token, and what is logged of it."""

    loss: Formula
    metrics: Formula = Formula(nothing)


SURROGATES = {
    "clip": Surrogate(Formula(clip), Formula(clip_regions)),
    "cispo": Surrogate(Formula(cispo), Formula(cispo_regions)),
    "sapo": Surrogate(Formula(sapo)),
    "vespo": Surrogate(Formula(vespo), Formula(vespo_phi)),
    "gmpo": Surrogate(Formula(gmpo), Formula(gmpo_regions)),
    "reinforce": Surrogate(Formula(reinforce)),
}
