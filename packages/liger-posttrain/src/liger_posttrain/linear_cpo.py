"""Preference optimisation without a reference, CPO and SimPO, behind a linear head."""

from typing import Any

from .linear_preference import LinearPreferenceLoss
from .options import choose
from .preference import PAIR_LOSSES

__all__ = ["LinearCPOLoss", "LinearSimPOLoss"]


class LinearCPOLoss(LinearPreferenceLoss):
    """Contrastive preference optimisation: no reference, and a negative log-likelihood.

    Args:
        beta: scale of the rewards.
        loss_type: "sigmoid", "hinge", "ipo", "simpo" or another of `PAIR_LOSSES`. Those of averages
            take mean log-probabilities of responses.
        nll_weight: factor of the mean negative log-likelihood of the chosen tokens (TRL's
            cpo_alpha).
        alpha: of AlphaPO's reward (1 - p^-alpha) / alpha, with log p as above; 0 for log p.
        options: those of the loss (`label_smoothing`, `gamma`) and of the head (see `LinearLoss`).

    The call is that of `LinearPreferenceLoss`.

    Where it departs from TRL: its mean logits and its hidden states are those of tokens that count.

    Source: arXiv:2401.08417; AlphaPO, arXiv:2501.03884.
    """

    def __init__(
        self, *, beta: float = 0.1, loss_type: str = "sigmoid", nll_weight: float = 1.0,
        alpha: float = 0.0, **options: Any,
    ):  # fmt: skip
        name = type(self).__name__
        averaged = choose(name, "loss_type", PAIR_LOSSES, loss_type).of in ("averages", "log_probs")
        score = "reverse_kl"
        if alpha != 0.0:
            score, options["f_alpha_divergence_coef"] = "alpha_divergence", 1.0 - alpha
        super().__init__(
            losses={loss_type: 1.0}, beta=beta, f_divergence_type=score, nll_weight=nll_weight,
            averaged=averaged, use_weighting=False, ld_alpha=None, reference=False, options=options,
        )  # fmt: skip


class LinearSimPOLoss(LinearCPOLoss):
    """Simple preference optimisation: mean log-probabilities, no reference, a target margin.

    Args:
        beta: scale of the rewards.
        gamma: the margin, in rewards.
        nll_weight, alpha, options: as in `LinearCPOLoss`.

    The call is that of `LinearPreferenceLoss`.

    Source: arXiv:2405.14734.
    """

    def __init__(
        self, *, beta: float = 2.0, gamma: float = 0.5, nll_weight: float = 0.0, alpha: float = 0.0,
        **options: Any,
    ):  # fmt: skip
        super().__init__(
            beta=beta, loss_type="simpo", nll_weight=nll_weight, alpha=alpha, gamma=gamma, **options
        )
