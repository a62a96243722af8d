"""Distillation from a teacher's head: what both losses have in common."""

from typing import Any

import liger_losses
from liger_posttrain import LinearDistillationLoss
from torch import Tensor, nn
from torch.nn.functional import pad

from ..missing import missing_class

__all__ = ["DistillationLoss", "LigerFusedLinearDistillationBase", "distillation"]

LigerFusedLinearDistillationBase = missing_class(
    "LigerFusedLinearDistillationBase", "liger-posttrain"
)


def distillation(
    loss: LinearDistillationLoss, student_input: Tensor, student_weight: Tensor,
    teacher_input: Tensor, teacher_weight: Tensor, true_labels: Tensor,
    student_bias: Tensor | None, teacher_bias: Tensor | None, weight_hard_loss: float,
    weight_soft_loss: float, return_soft_hard_loss: bool,
) -> Any:  # fmt: skip
    """weight_soft_loss * soft + weight_hard_loss * hard, or (that, soft, hard), of tokens [M, H].

    soft: `loss`, of both heads; hard: the cross entropy of the labels. Where the teacher has more
    classes, as heads padded for speed do, the student's logits of these are 0.
    """
    more = teacher_weight.shape[0] - student_weight.shape[0]
    soft = loss(
        student_input[None], _padded(student_weight, more), true_labels[None],
        linear_bias=None if student_bias is None else _padded(student_bias, more),
        ref_input=teacher_input[None], ref_weight=teacher_weight, ref_bias=teacher_bias,
    ).loss  # fmt: skip
    total = weight_soft_loss * soft
    if weight_hard_loss != 0.0 or return_soft_hard_loss:
        hard = liger_losses.linear_cross_entropy(
            student_input, student_weight, true_labels, linear_bias=student_bias,
            ignore_index=loss.ignore_index,
        )  # fmt: skip
        total = total + weight_hard_loss * hard
        if return_soft_hard_loss:
            return total, soft.detach(), hard.detach()
    return total


def _padded(t: Tensor, more: int) -> Tensor:
    return pad(t, (*(0, 0) * (t.ndim - 1), 0, more)) if more > 0 else t


class DistillationLoss(nn.Module):
    """`function` with fixed options."""

    function: Any

    def __init__(
        self, weight_hard_loss: float = 0.5, weight_soft_loss: float = 0.5, beta: float = 0.5,
        ignore_index: int = -100, temperature: float = 1.0, compiled: bool = True,
        chunk_size: int = 1024, return_soft_hard_loss: bool = False,
    ):  # fmt: skip
        super().__init__()
        assert temperature != 0, "temperature cannot be 0"
        self.weight_hard_loss, self.weight_soft_loss = weight_hard_loss, weight_soft_loss
        self.beta, self.ignore_index, self.temperature = beta, ignore_index, temperature
        self.compiled, self.chunk_size = compiled, chunk_size
        self.return_soft_hard_loss = return_soft_hard_loss

    def forward(
        self, student_input: Tensor, student_weight: Tensor, teacher_input: Tensor,
        teacher_weight: Tensor, true_labels: Tensor, student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
    ) -> Any:  # fmt: skip
        return type(self).function(
            student_input, student_weight, teacher_input, teacher_weight, true_labels,
            student_bias, teacher_bias, self.weight_hard_loss, self.weight_soft_loss, self.beta,
            self.ignore_index, self.temperature, self.compiled, self.chunk_size,
            self.return_soft_hard_loss,
        )  # fmt: skip
