"""Preference optimisation from single labelled responses behind a linear head.

The baseline is known before any gradient, so that sequences are independent of each other: three
matrix products while the logits of one fit 1 GiB and four beyond, and one for the reference.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .kto import UNPAIRED_LOSSES
from .linear import HEAD_OPTIONS, LinearLoss, LossOutput, mean_where
from .options import check_taken, choose
from .responses import ref_of_responses, response_weights

__all__ = ["LinearKTOLoss"]


class LinearKTOLoss(LinearLoss):
    """Kahneman-Tversky optimisation and its kin.

    Args:
        beta: scale of the rewards; strength of the pull to the reference.
        loss_type: "kto", "apo_zero_unpaired" or "bco", see `kto`.
        desirable_weight, undesirable_weight: factors of the losses of either kind.
        reference_free: log pi(y) instead of log pi(y) - log pi_ref(y).
        average_log_prob: log-probabilities of responses are means over tokens.
        options: of the head (`temperature`, `softcap`, `statistics`, ..., see `LinearLoss`).

    Called as loss(input, linear_weight, target, desirable=..., ...) -> LossOutput(loss, metrics);
    gradients flow to input, linear_weight and linear_bias.

    Args of the call:
        input: hidden states that predict `target`, [B, T, H].
        linear_weight, linear_bias: the head, [V, H], and [V] or None.
        target: [B, T]; `ignore_index` for prompts and padding.
        desirable: [B], bool.
        mask: [B, T], tokens that count besides, or None. Others never reach a matrix product.
        baseline: KTO's z0 (`kto_baseline` of mismatched responses, with `linear_log_probs` under
            no_grad), BCO's delta (`bco_delta`); a number or a 0-d tensor.
        ref_log_probs: of the reference, [B, T] of tokens or [B] of responses; or ref_input
            [B, T, H'], ref_weight and ref_bias to compute them.
        normalizer: what the sum over responses is divided by, B by default.

    A response without tokens adds 0. Metrics: "rewards/chosen", "rewards/rejected" (NaN where there
    is none), "rewards/margins", "logps/chosen", "logps/rejected", "kl" (KTO's baseline) or
    "baseline"; if in `statistics` "entropy", "logits/chosen", "logits/rejected",
    "mean_token_accuracy" (of the desirable ones).

    Source: arXiv:2402.01306.
    """

    def __init__(
        self, *, beta: float = 0.1, loss_type: str = "kto", desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0, reference_free: bool = False,
        average_log_prob: bool = False, **options: Any,
    ):  # fmt: skip
        super().__init__(**{n: options.pop(n) for n in HEAD_OPTIONS if n in options})
        self.formula = choose(self.name, "loss_type", UNPAIRED_LOSSES, loss_type)
        check_taken(self.name, f"loss_type {loss_type!r}", (), options)
        self.beta, self.loss_type = beta, loss_type
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight
        self.reference_free, self.average_log_prob = reference_free, average_log_prob

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, *, desirable: Tensor,
        linear_bias: Tensor | None = None, mask: Tensor | None = None,
        baseline: float | Tensor | None = None, ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None, ref_bias: Tensor | None = None,
        ref_log_probs: Tensor | None = None, normalizer: float | Tensor | None = None,
    ) -> LossOutput:  # fmt: skip
        labels = self.labels(input, linear_weight, target, mask)
        B, counts = len(labels), labels != self.ignore_index
        if desirable.shape != (B,) or desirable.dtype != torch.bool:
            raise ValueError(
                f"{self.name}: desirable {desirable.dtype} {tuple(desirable.shape)} must be bool, "
                f"[{B}] for target {tuple(labels.shape)}"
            )
        if (baseline is None) == ("baseline" in self.formula.tensors):
            verb = "needs" if baseline is None else "has no"
            raise ValueError(f"{self.name}: loss_type {self.loss_type!r} {verb} baseline")
        baseline = baseline.detach() if isinstance(baseline, Tensor) else baseline
        needed = not self.reference_free
        ref = self.reference(labels, needed, ref_log_probs, ref_input, ref_weight, ref_bias)
        token_weights = response_weights(counts, self.average_log_prob)
        normalizer = max(B, 1) if normalizer is None else normalizer
        loss, aux = self.of_statistics(
            partial(self.losses, baseline=baseline, normalizer=normalizer), "group",
            (input, linear_weight, linear_bias), labels, (), mask=counts,
            token_weights=token_weights, desirable=desirable,
            ref_logps=ref_of_responses(self.name, ref, counts, token_weights),
        )  # fmt: skip
        return LossOutput(loss, self.metrics(aux, counts, desirable, baseline))

    def losses(
        self, stats: Any, *, mask: Tensor, token_weights: Tensor, desirable: Tensor,
        baseline: float | Tensor | None, normalizer: float | Tensor,
        ref_logps: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Of responses [n], from statistics [n, T]."""
        logps = (stats.log_probs * token_weights).sum(-1)
        scores = logps if ref_logps is None else logps - ref_logps
        given = {"scores": scores, "desirable": desirable, "baseline": baseline}
        losses = self.formula(given, {"beta": self.beta})
        weight = losses.new_full((), self.desirable_weight)
        weights = torch.where(desirable, weight, self.undesirable_weight)
        losses = (losses * weights).where(mask.any(-1), 0.0) / normalizer
        return losses, {"logps": logps, "rewards": self.beta * scores}

    def metrics(
        self, aux: Mapping[str, Tensor], counts: Tensor, desirable: Tensor,
        baseline: float | Tensor | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        found = {}
        for side, of_side in (("chosen", desirable), ("rejected", ~desirable)):
            for name in ("rewards", "logps"):
                found[f"{name}/{side}"] = mean_where(aux[name], of_side)
            if "logits" in aux:
                tokens = counts & of_side[:, None]
                found[f"logits/{side}"] = mean_where(aux["logits"], tokens)
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        if "entropy" in aux:
            found["entropy"] = mean_where(aux["entropy"], counts)
        if "mean_token_accuracy" in aux:
            tokens = counts & desirable[:, None]
            found["mean_token_accuracy"] = mean_where(aux["mean_token_accuracy"], tokens)
        if baseline is not None:
            name = "kl" if self.loss_type == "kto" else "baseline"
            found[name] = aux["rewards"].new_zeros(()) + baseline
        return found
