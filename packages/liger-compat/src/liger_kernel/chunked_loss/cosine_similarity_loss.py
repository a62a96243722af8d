"""Distillation by the cosine distance of logits."""

from typing import Any

from liger_posttrain import LinearDistillationLoss
from torch import Tensor

from .fused_linear_distillation import DistillationLoss, distillation

__all__ = [
    "LigerFusedLinearCosineSimilarityFunction",
    "LigerFusedLinearCosineSimilarityLoss",
    "liger_fused_linear_cosine",
]


def liger_fused_linear_cosine(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor,
    true_labels: Tensor, student_bias: Tensor | None = None, teacher_bias: Tensor | None = None,
    weight_hard_loss: float = 0.5, weight_soft_loss: float = 0.5, beta: float = 0.5,
    ignore_index: int = -100, temperature: float = 1.0, compiled: bool = True,
    chunk_size: int = 1024, return_soft_hard_loss: bool = False,
) -> Any:  # fmt: skip
    """`distillation` with beta times the distance of `liger_losses.linear_cosine`, on which no
    temperature acts.
    """
    loss = LinearDistillationLoss(loss_type="cosine", soft_weight=beta, ignore_index=ignore_index)
    return distillation(
        loss, student_input, student_weight, teacher_input, teacher_weight, true_labels,
        student_bias, teacher_bias, weight_hard_loss, weight_soft_loss, return_soft_hard_loss,
    )  # fmt: skip


class LigerFusedLinearCosineSimilarityFunction:
    apply = staticmethod(liger_fused_linear_cosine)


class LigerFusedLinearCosineSimilarityLoss(DistillationLoss):
    """`liger_fused_linear_cosine` with fixed options."""

    function = staticmethod(liger_fused_linear_cosine)
