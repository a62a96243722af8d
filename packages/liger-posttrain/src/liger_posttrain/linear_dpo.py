"""Direct preference optimisation behind a linear head."""

from collections.abc import Sequence
from typing import Any

from .linear_preference import LinearPreferenceLoss

__all__ = ["LinearDPOLoss"]


class LinearDPOLoss(LinearPreferenceLoss):
    """Direct preference optimisation: any loss of `PAIR_LOSSES`, or a weighted sum of several.

    Args:
        beta: scale of the rewards; strength of the pull to the reference.
        loss_type: a name, or several, "sft" among them for the negative log-likelihood of the
            chosen responses.
        loss_weights: a weight for each, by default 1.
        f_divergence_type: "reverse_kl", "forward_kl", "js_divergence" or "alpha_divergence".
        reference_free: log pi(y) instead of log pi(y) - log pi_ref(y).
        nll_weight: factor of the mean negative log-likelihood of the chosen tokens (RPO's alpha).
        average_log_prob: log-probabilities of responses are means over tokens.
        use_weighting: weigh pairs as WPO does; the negative log-likelihood is not weighted.
        ld_alpha: see `pair_objective.response_weights`.
        options: those of the losses (`label_smoothing`, `discopop_tau`,
            `f_alpha_divergence_coef`) and of the head (`temperature`, `softcap`, `statistics`, ...,
            see `LinearLoss`).

    The call is that of `LinearPreferenceLoss`.

    Where it departs from TRL: `label_smoothing` acts on "sigmoid" too (conservative DPO), and is an
    error where no loss takes it; the rewards in the metrics are those of the f-divergence, as in
    the f-DPO paper, where TRL logs beta (log pi - log pi_ref) for all.

    Source: arXiv:2305.18290, and those in `preference`.
    """

    def __init__(
        self, *, beta: float = 0.1, loss_type: str | Sequence[str] = "sigmoid",
        loss_weights: Sequence[float] | None = None, f_divergence_type: str = "reverse_kl",
        reference_free: bool = False, nll_weight: float = 0.0, average_log_prob: bool = False,
        use_weighting: bool = False, ld_alpha: float | None = None, **options: Any,
    ):  # fmt: skip
        names = [loss_type] if isinstance(loss_type, str) else list(loss_type)
        weights = [1.0] * len(names) if loss_weights is None else list(loss_weights)
        if len(names) != len(weights) or len(set(names)) != len(names):
            raise ValueError(
                f"LinearDPOLoss: loss_type {names} must be different names, one for each of "
                f"loss_weights {weights}"
            )
        losses = dict(zip(names, weights, strict=True))
        super().__init__(
            losses=losses, beta=beta, f_divergence_type=f_divergence_type,
            nll_weight=nll_weight + losses.pop("sft", 0.0), averaged=average_log_prob,
            use_weighting=use_weighting, ld_alpha=ld_alpha, reference=not reference_free,
            options=options,
        )  # fmt: skip
