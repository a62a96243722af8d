"""Odds ratio preference optimisation behind a linear head."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .linear import mean
from .linear_preference import LinearPreferenceLoss
from .preference import log_odds

__all__ = ["LinearORPOLoss"]


class LinearORPOLoss(LinearPreferenceLoss):
    """Odds ratio preference optimisation: a negative log-likelihood of the chosen responses and
    beta times the loss of the odds ratio, of mean log-probabilities.

    Args:
        beta: the paper's lambda.
        nll_weight: factor of the mean negative log-likelihood, 1 in the paper.
        options: of the head, see `LinearLoss`.

    The call is that of `LinearPreferenceLoss`; in TRL the likelihood is that of prompt and
    response: give such labels as `nll_target`. Further metrics: "log_odds_chosen",
    "log_odds_ratio".

    Source: arXiv:2403.07691.
    """

    def __init__(self, *, beta: float = 0.1, nll_weight: float = 1.0, **options: Any):
        super().__init__(
            losses={"orpo": 1.0}, beta=beta, f_divergence_type="reverse_kl", nll_weight=nll_weight,
            averaged=True, use_weighting=False, ld_alpha=None, reference=False, options=options,
        )  # fmt: skip

    def metrics(self, aux: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        odds = log_odds(*aux["logps"].unbind(1))
        more = {"log_odds_chosen": mean(odds), "log_odds_ratio": mean(F.logsigmoid(odds))}
        return super().metrics(aux, mask) | more
