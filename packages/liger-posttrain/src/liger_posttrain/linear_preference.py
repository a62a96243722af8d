"""Preference optimisation behind a linear head, without logits: what DPO, ORPO and CPO share.

Rows are the chosen responses, then the rejected ones. A pair stays together, in three matrix
products while its logits fit 1 GiB and in four beyond; losses that sort over the batch keep all of
it together. A reference head costs one product more, without gradient.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .f_divergence import F_DIVERGENCES
from .linear import HEAD_OPTIONS, LinearLoss, LossOutput, check_shape
from .options import check_taken, choose
from .pair_objective import PairObjective, pair_metrics
from .preference import PAIR_LOSSES
from .responses import pairs, ref_of_responses, response_weights

__all__ = ["LinearPreferenceLoss"]


class LinearPreferenceLoss(LinearLoss):
    """What the losses of pairs have in common; use one of its kin.

    Called as loss(input, linear_weight, target, ...) -> LossOutput(loss, metrics); gradients flow
    to input, linear_weight and linear_bias.

    Args of the call:
        input: hidden states that predict `target`, [2 N, T, H], N chosen rows, then N rejected.
        linear_weight, linear_bias: the head, [V, H], and [V] or None.
        target: [2 N, T]; `ignore_index` for prompts and padding.
        mask: [2 N, T], tokens that count besides, or None. Others never reach a matrix product.
        ref_log_probs: of the reference, [2 N, T] of tokens or [2 N] of responses; or ref_input
            [2 N, T, H'], ref_weight and ref_bias to compute them.
        nll_target: [2 N, T], targets of the negative log-likelihood where they are more than those
            of the chosen responses, e.g. with the prompts; rejected rows are not looked at.
        normalizer: what the sum over pairs is divided by, N by default.
        nll_normalizer: what that of the negative log-likelihoods is, by default their number.

    A pair without tokens adds 0. Metrics: "rewards/chosen", "rewards/rejected",
    "rewards/accuracies", "rewards/margins" (rewards are beta * score), "logps/chosen",
    "logps/rejected", "nll_loss" where there is one; if in `statistics` "entropy", "logits/chosen",
    "logits/rejected", "mean_token_accuracy" (of the chosen ones).
    """

    def __init__(
        self, *, losses: dict[str, float], beta: float, f_divergence_type: str, nll_weight: float,
        averaged: bool, use_weighting: bool, ld_alpha: float | None, reference: bool,
        options: dict[str, Any],
    ):  # fmt: skip
        super().__init__(**{n: options.pop(n) for n in HEAD_OPTIONS if n in options})
        rows = {n: choose(self.name, "loss_type", PAIR_LOSSES, n) for n in losses}
        score = choose(self.name, "f_divergence_type", F_DIVERGENCES, f_divergence_type)
        formulas = [score, *(row.formula for row in rows.values())]
        takes = {name for formula in formulas for name in formula.options}
        chosen = f"loss_type {', '.join(losses)!r}"
        check_taken(self.name, chosen, takes - {"beta"}, options)
        for name, row in rows.items():
            if f_divergence_type != "reverse_kl" and not row.any_divergence:
                raise ValueError(
                    f"{self.name}: {name!r} is not defined for f_divergence_type "
                    f"{f_divergence_type!r}: it sees more than the difference of two scores"
                )
            if row.of == "log_probs" and reference:
                raise ValueError(f"{self.name}: {name!r} is about probabilities, not ratios")
            if use_weighting and row.whole_batch:
                raise ValueError(
                    f"{self.name}: {name!r} sorts the batch; use_weighting weighs pairs"
                )
        options = {"beta": beta, **options}
        self.objective = PairObjective(
            losses, options, f_divergence_type, averaged, use_weighting, nll_weight
        )
        self.ld_alpha, self.has_reference = ld_alpha, reference

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, *,
        linear_bias: Tensor | None = None, mask: Tensor | None = None,
        ref_input: Tensor | None = None, ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None, ref_log_probs: Tensor | None = None,
        nll_target: Tensor | None = None, normalizer: float | Tensor | None = None,
        nll_normalizer: float | Tensor | None = None,
    ) -> LossOutput:  # fmt: skip
        labels = self.labels(input, linear_weight, target, mask)
        if len(labels) % 2:
            raise ValueError(
                f"{self.name}: target {tuple(labels.shape)} must have an even number of rows, "
                "chosen ones first, then as many rejected"
            )
        counts = labels != self.ignore_index
        ref = self.reference(
            labels, self.has_reference, ref_log_probs, ref_input, ref_weight, ref_bias
        )
        mask, nll_weights = pairs(counts), None
        if nll_target is not None and self.objective.nll_weight == 0.0:
            raise ValueError(f"{self.name}: nll_target was given, but nll_weight is 0")
        if self.objective.nll_weight != 0.0:
            labels, nll_weights = self.with_nll(labels, nll_target, nll_normalizer)
        token_weights = response_weights(mask, self.objective.averaged, self.ld_alpha)
        normalizer = max(len(mask), 1) if normalizer is None else normalizer
        loss, aux = self.of_statistics(
            partial(self.objective, normalizer=normalizer),
            "batch" if self.objective.whole_batch else "group",
            (pairs(input), linear_weight, linear_bias), pairs(labels),
            ["squares"] * self.objective.use_weighting, mask=mask, token_weights=token_weights,
            ref_logps=ref_of_responses(self.name, ref, counts, token_weights, pairs),
            nll_weights=nll_weights,
        )  # fmt: skip
        return LossOutput(loss, self.metrics(aux, mask))

    def with_nll(
        self, labels: Tensor, nll_target: Tensor | None, normalizer: float | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Labels of all tokens that either loss is about, and weights of the second, [N, 2, T]."""
        N, counts = len(labels) // 2, labels != self.ignore_index
        if nll_target is not None:
            check_shape(self.name, "nll_target", nll_target, labels)
            chosen = labels[:N].where(counts[:N], nll_target[:N])
            labels, counts = torch.cat([chosen, labels[N:]]), nll_target != self.ignore_index
        total = counts[:N].sum().clamp(min=1) if normalizer is None else normalizer
        weights = counts[:N].float() / total
        return labels, torch.stack([weights, torch.zeros_like(weights)], 1)

    def metrics(self, aux: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        return pair_metrics(aux, mask)
