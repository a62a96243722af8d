"""Distillation of a teacher's head into a student's, without the logits of either.

    loss = soft_weight * divergence(student, teacher) + hard_weight * cross entropy of the labels

The divergences are those of `liger_losses`, a row of `DISTILLATION` each: four matrix products with
a teacher's head, three with a list of the teacher's classes. The cross entropy makes the student's
logits a second time: three more where its weight is not 0.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from liger_losses import (
    linear_cosine,
    linear_cross_entropy,
    linear_jsd,
    linear_kl_div,
    linear_tvd,
)
from torch import Tensor

from .linear import LinearLoss, LossOutput, check_weight
from .options import check_taken, choose

__all__ = ["DISTILLATION", "HeadDivergence", "LinearDistillationLoss"]


class HeadDivergence(NamedTuple):
    """A loss of two heads, its arguments in this row, and the options that a user may give."""

    function: Callable[..., Tensor]
    arguments: Mapping[str, Any] = {}
    options: tuple[str, ...] = ()
    has_temperature: bool = True


DISTILLATION = {
    # sum_j p_j log(p_j / q_j), p of the teacher and q of the student: arXiv:1503.02531
    "forward_kl": HeadDivergence(linear_kl_div, {"direction": "forward"}),
    # sum_j q_j log(q_j / p_j): MiniLLM, arXiv:2306.08543
    "reverse_kl": HeadDivergence(linear_kl_div, {"direction": "reverse"}),
    # beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: GKD, arXiv:2306.13649
    "jsd": HeadDivergence(linear_jsd, {}, ("beta",)),
    # sum_j |p_j - q_j| / 2: arXiv:2307.15190
    "tvd": HeadDivergence(linear_tvd),
    # 1 - cosine of the logits
    "cosine": HeadDivergence(linear_cosine, {}, (), False),
    # forward_kl over listed classes of the teacher
    "top_k": HeadDivergence(linear_kl_div, {"direction": "forward"}),
}


class LinearDistillationLoss(LinearLoss):
    """Mean divergence of a student's head from a teacher's over the tokens that count.

    Args:
        loss_type: a row of `DISTILLATION`.
        soft_weight: factor of the divergence.
        hard_weight: factor of the cross entropy of the targets, at temperature 1.
        temperature: divides the logits of both heads in the divergence, which is not multiplied by
            its square.
        logit_scale: factor of the logits of both heads.
        options: `beta` of "jsd", 0.5 by default; `ignore_index`, `chunk_bytes`, see `LinearLoss`.

    Called as loss(input, linear_weight, target, ref_input=..., ref_weight=..., ...) ->
    LossOutput(loss, metrics); gradients flow to input, linear_weight and linear_bias.

    Args of the call:
        input: hidden states of the student, [B, T, H].
        linear_weight, linear_bias: its head, [V, H], and [V] or None.
        target: [B, T]; `ignore_index` for prompts and padding. On-policy distillation (GKD) is this
            loss on responses of the student.
        mask: [B, T], tokens that count besides, or None. Others never reach a matrix product.
        ref_input, ref_weight, ref_bias: of the teacher, [B, T, H'], [V, H'], and [V] or None.
        target_log_probs, target_ids: for "top_k" instead, log-probabilities of k classes a token
            and these classes, [B, T, k]; no teacher is needed.
        normalizer: what sums are divided by, the number of tokens that count by default.

    Metrics: "soft_loss", and "hard_loss" where it has a weight.

    Distillation by policy gradient, from log-probabilities of the drawn tokens alone, is
    `LinearGRPOLoss` with advantages = teacher_log_probs - old_log_probs, [B, T].
    """

    def __init__(
        self, *, loss_type: str = "forward_kl", soft_weight: float = 1.0, hard_weight: float = 0.0,
        temperature: float = 1.0, logit_scale: float = 1.0, **options: Any,
    ):  # fmt: skip
        self.cut: dict[str, Any] = {
            n: options.pop(n) for n in ("ignore_index", "chunk_bytes") if n in options
        }
        super().__init__(temperature=temperature, logit_scale=logit_scale, **self.cut)
        self.row = choose(self.name, "loss_type", DISTILLATION, loss_type)
        check_taken(self.name, f"loss_type {loss_type!r}", self.row.options, options)
        self.loss_type, self.logit_scale = loss_type, logit_scale
        self.soft_weight, self.hard_weight = soft_weight, hard_weight
        self.of_divergence = {**self.row.arguments, **options}
        if self.row.has_temperature:
            self.of_divergence["temperature"] = temperature / logit_scale

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, *,
        linear_bias: Tensor | None = None, mask: Tensor | None = None,
        ref_input: Tensor | None = None, ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None, target_log_probs: Tensor | None = None,
        target_ids: Tensor | None = None, normalizer: float | Tensor | None = None,
    ) -> LossOutput:  # fmt: skip
        labels = self.labels(input, linear_weight, target, mask)
        listed = {"target_log_probs": target_log_probs, "target_ids": target_ids}
        head = {"teacher_input": ref_input, "teacher_weight": ref_weight}
        takes, other = head, listed
        if self.loss_type == "top_k":
            takes, other = listed, {**head, "teacher_bias": ref_bias}
        if any(t is None for t in takes.values()) or any(t is not None for t in other.values()):
            needs = " and ".join(takes).replace("teacher", "ref")
            raise ValueError(f"{self.name}: loss_type {self.loss_type!r} takes {needs}, no other")
        if ref_weight is not None:
            check_weight(self.name, "ref_weight", ref_weight)
            takes["teacher_bias"] = ref_bias
        teacher = {name: t if t is None else t.detach() for name, t in takes.items()}
        common: dict[str, Any] = {"normalizer": normalizer, **self.cut}
        soft = self.row.function(
            input, linear_weight, student_bias=linear_bias, labels=labels, **teacher, **common,
            **self.of_divergence,
        )  # fmt: skip
        loss, metrics = self.soft_weight * soft, {"soft_loss": soft.detach()}
        if self.hard_weight != 0.0:
            hard = linear_cross_entropy(
                input, linear_weight, labels, linear_bias=linear_bias,
                logit_scale=self.logit_scale, **common,
            )  # fmt: skip
            loss, metrics["hard_loss"] = loss + self.hard_weight * hard, hard.detach()
        return LossOutput(loss, metrics)
