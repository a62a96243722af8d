"""Policy optimisation behind a linear head: every algorithm of `algorithms`, without logits.

The objective is that of `policy_objective`. What concerns a token alone is computed token by token,
in three matrix products at any length; a ratio, surrogate or mask of whole sequences keeps those
together; a quantile of entropies needs the whole batch before any gradient.
"""

from functools import partial
from typing import Any

from torch import Tensor

from .algorithms import ALGORITHMS
from .importance import LEVELS
from .kl import KL_ESTIMATORS
from .linear import HEAD_OPTIONS, LinearLoss, LossOutput, per_sequence, per_token
from .options import check_taken, choose
from .policy import SURROGATES
from .policy_objective import PolicyObjective, policy_metrics
from .reductions import REDUCTIONS, token_weights

__all__ = ["LinearGRPOLoss"]


class LinearGRPOLoss(LinearLoss):
    """Loss of policy optimisation from hidden states and the head's weight.

    Args:
        loss_type: an algorithm of `ALGORITHMS`: "grpo", "dapo", "gspo", "cispo", ...
        beta: factor of the KL from the reference; with 0 no reference is needed.
        kl_estimator: "k1", "k2" or "k3", see `kl`.
        use_bias_correction_kl: multiply it by the ratio, as DeepSeek-V3.2 does.
        importance_sampling_level: "token", "sequence", "sequence_sum", "sequence_token"; by default
            that of the algorithm.
        reduction: a name of `REDUCTIONS`; by default that of the algorithm.
        max_completion_length: what reduction "dr_grpo" counts a sequence for, by default T.
        entropy_coef: factor of the bonus, the mean entropy of the tokens that count.
        top_entropy_quantile: share of the tokens, those of highest entropy, that the surrogate and
            the bonus act on; of the local batch, which is then one group.
        off_policy_mask_threshold: see `importance.off_policy_mask`; None for none.
        options: those of the surrogate (`epsilon_low`, `epsilon_high`, `delta`, ..., see `policy`)
            and of the head (`temperature`, `softcap`, `statistics`, ..., see `LinearLoss`).

    Called as loss(input, linear_weight, target, advantages=..., ...) -> LossOutput(loss, metrics):
    gradients flow to input, linear_weight and linear_bias.

    Args of the call:
        input: hidden states that predict `target`, [B, T, H].
        linear_weight, linear_bias: the head, [V, H], and [V] or None.
        target: the tokens that were drawn, [B, T]; `ignore_index` for prompts and padding.
        mask: [B, T], tokens that count besides, or None. Others never reach a matrix product.
        advantages: [B], or [B, T] for one a token.
        old_log_probs: [B, T], of the policy that drew the tokens; None: of this one, ratio 1.
        ref_log_probs: [B, T], or ref_input [B, T, H'], ref_weight and ref_bias to compute them;
            only looked at where beta is not 0.
        importance_sampling_ratio: [B, T], [B, 1] or [B], see `importance.sampler_ratio`, or None.
        sampler_log_probs: [B, T], what `off_policy_mask_threshold` is about; by default the old.
        entropy_threshold: instead of `top_entropy_quantile`, e.g. the quantile over all ranks.
        normalizer: what the reduction divides by, see `reductions.token_weights`.
        entropy_normalizer: the number of tokens that the bonus is a mean over, by default those
            of the local batch that it acts on.

    Metrics: "kl" (beta > 0); "clip_ratio/..." or what else the surrogate has; "entropy", "logits",
    "mean_token_accuracy" if in `statistics`. Means over tokens, over sequences where the ratio is
    theirs.

    Where it departs from TRL: rows of `ALGORITHMS` have the numbers of their papers, where TRL has
    one epsilon for all; a mean of nothing is NaN in the metrics, there 0.
    """

    def __init__(
        self, *, loss_type: str = "dapo", beta: float = 0.0, kl_estimator: str = "k3",
        use_bias_correction_kl: bool = False, importance_sampling_level: str | None = None,
        reduction: str | None = None, max_completion_length: int | None = None,
        entropy_coef: float = 0.0, top_entropy_quantile: float = 1.0,
        off_policy_mask_threshold: float | None = None, **options: Any,
    ):  # fmt: skip
        super().__init__(**{n: options.pop(n) for n in HEAD_OPTIONS if n in options})
        row = choose(self.name, "loss_type", ALGORITHMS, loss_type)
        level = importance_sampling_level or row.level
        choose(self.name, "importance_sampling_level", LEVELS, level)
        choose(self.name, "kl_estimator", KL_ESTIMATORS, kl_estimator)
        takes = SURROGATES[row.surrogate].loss.options
        check_taken(self.name, f"loss_type {loss_type!r}", takes, options)
        if not 0.0 < top_entropy_quantile <= 1.0:
            raise ValueError(
                f"{self.name}: top_entropy_quantile must be in (0, 1], got {top_entropy_quantile}"
            )
        self.objective = PolicyObjective(
            row.surrogate, level, {**row.options, **options}, beta, kl_estimator,
            use_bias_correction_kl, entropy_coef, top_entropy_quantile, off_policy_mask_threshold,
        )  # fmt: skip
        self.reduction = reduction or row.reduction
        choose(self.name, "reduction", REDUCTIONS, self.reduction)
        self.max_completion_length = max_completion_length

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, *, advantages: Tensor,
        linear_bias: Tensor | None = None, mask: Tensor | None = None,
        old_log_probs: Tensor | None = None, ref_log_probs: Tensor | None = None,
        ref_input: Tensor | None = None, ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None, importance_sampling_ratio: Tensor | None = None,
        sampler_log_probs: Tensor | None = None, entropy_threshold: float | Tensor | None = None,
        normalizer: float | Tensor | None = None,
        entropy_normalizer: float | Tensor | None = None,
    ) -> LossOutput:  # fmt: skip
        labels = self.labels(input, linear_weight, target, mask)
        counts, objective = labels != self.ignore_index, self.objective
        ref = None
        if objective.beta != 0.0:
            ref = self.reference(labels, True, ref_log_probs, ref_input, ref_weight, ref_bias)
        tensors = per_token(
            self.name, counts, old_log_probs=old_log_probs, ref_log_probs=ref,
            sampler_log_probs=sampler_log_probs,
        ) | per_sequence(
            self.name, counts, advantages=advantages,
            importance_sampling_ratio=importance_sampling_ratio,
        )  # fmt: skip
        weights = token_weights(
            counts, self.reduction, normalizer=normalizer,
            max_completion_length=self.max_completion_length,
        )  # fmt: skip
        bonus = None
        if objective.entropy_coef != 0.0:
            bonus = token_weights(counts, "bnpo", normalizer=entropy_normalizer)
        selects = entropy_threshold is not None or objective.top_entropy_quantile < 1.0
        renormalize = selects and bonus is not None and entropy_normalizer is None
        # a quantile or a count of entropies is known when all are
        whole = renormalize or (selects and entropy_threshold is None)
        level = "batch" if whole else "group" if objective.needs_sequences else "token"
        loss, aux = self.of_statistics(
            partial(objective, entropy_threshold=entropy_threshold, renormalize=renormalize),
            level, (input, linear_weight, linear_bias), labels,
            ["entropy"] * (selects or bonus is not None),
            mask=counts, weights=weights, bonus=bonus, **tensors,
        )  # fmt: skip
        return LossOutput(loss, policy_metrics(aux, counts))
