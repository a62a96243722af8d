"""The objective of pairs of responses, of statistics of tokens however they were computed.

    logp_y = sum_t a_yt log pi(y_t), score_y = f(logp_y - ref_logp_y)
    loss   = sum_pairs (1 / normalizer) sum_k weight_k loss_k(pair) + nll_weight * nll

a weighs tokens, see `responses`; nll is the mean negative log-likelihood of the chosen ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .f_divergence import F_DIVERGENCES
from .linear import mean, mean_where
from .preference import PAIR_LOSSES

__all__ = ["PairObjective", "pair_metrics"]


@dataclass(frozen=True, eq=False)
class PairObjective:
    """Rows of `PAIR_LOSSES` with weights, and what they take."""

    losses: Mapping[str, float]
    options: Mapping[str, Any]
    f_divergence_type: str = "reverse_kl"
    averaged: bool = False
    use_weighting: bool = False
    nll_weight: float = 0.0

    @property
    def whole_batch(self) -> bool:
        return any(PAIR_LOSSES[name].whole_batch for name in self.losses)

    def __call__(
        self, stats: Any, *, mask: Tensor, token_weights: Tensor, ref_logps: Tensor | None = None,
        nll_weights: Tensor | None = None, normalizer: float | Tensor = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Losses of pairs [n], or of batches of them [n], from statistics [n, ..., 2, T], and what
        is logged: [n, ..., 2] of responses.
        """
        logps = (stats.log_probs * token_weights).sum(-1)
        ref_logps = torch.zeros_like(logps) if ref_logps is None else ref_logps
        score = F_DIVERGENCES[self.f_divergence_type]
        scores = score({"u": logps - ref_logps}, self.options)
        lengths = mask.sum(-1)
        kinds = {
            "scores": scores,
            "log_probs": logps,
            "averages": scores if self.averaged else scores / lengths.clamp(min=1),
            "margins": torch.stack(
                [logps[..., 0] - logps[..., 1], ref_logps[..., 0] - ref_logps[..., 1]], -1
            ),
        }
        losses = torch.zeros_like(logps[..., 0])
        for name, weight in self.losses.items():
            row = PAIR_LOSSES[name]
            chosen, rejected = kinds[row.of].unbind(-1)
            given = {"chosen": chosen, "rejected": rejected}
            losses = losses + weight * row.formula(given, self.options)
        if self.use_weighting:
            losses = losses * policy_weight(stats, mask, lengths)
        counted = lengths.sum(-1) > 0
        # sorted losses are no longer those of one pair
        counted = counted.any(-1, keepdim=True) if self.whole_batch else counted
        losses = losses.where(counted, 0.0) / normalizer
        aux = {"logps": logps, "rewards": self.options["beta"] * scores}
        if nll_weights is not None:
            nll = -(stats.log_probs * nll_weights).sum((-1, -2))
            losses, aux["nll"] = losses + self.nll_weight * nll, nll
        return losses if losses.ndim == 1 else losses.flatten(1).sum(-1), aux


def policy_weight(stats: Any, mask: Tensor, lengths: Tensor) -> Tensor:
    """prod over both responses of exp(mean_t (log pi(y_t) - log sum_j p_tj^2)), without gradient:
    how near a pair is to what the policy would sample.

    Source: WPO, arXiv:2406.11827, eq. 2.
    """
    with torch.no_grad():
        aligned = (stats.log_probs - stats.squares.where(mask, 1.0).log()) * mask
        return (aligned.sum(-1) / lengths.clamp(min=1)).exp().prod(-1)


def pair_metrics(aux: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Means over responses, and over their tokens [N, 2, T]."""
    found, sides = {}, ("chosen", "rejected")
    for i, side in enumerate(sides):
        found[f"rewards/{side}"] = mean(aux["rewards"][:, i])
        found[f"logps/{side}"] = mean(aux["logps"][:, i])
        if "logits" in aux:
            found[f"logits/{side}"] = mean_where(aux["logits"][:, i], mask[:, i])
    chosen, rejected = aux["rewards"].unbind(1)
    found["rewards/accuracies"] = mean(chosen > rejected)
    found["rewards/margins"] = mean(chosen - rejected)
    if "entropy" in aux:
        found["entropy"] = mean_where(aux["entropy"], mask)
    if "mean_token_accuracy" in aux:
        found["mean_token_accuracy"] = mean_where(aux["mean_token_accuracy"][:, 0], mask[:, 0])
    if "nll" in aux:
        found["nll_loss"] = aux["nll"].sum()
    return found
