"""Generalised Jensen-Shannon divergence of two heads."""

import torch
from torch import Tensor, nn

from .functional_divergences import liger_fused_linear_jsd

__all__ = ["LigerFusedLinearJSD"]


class LigerFusedLinearJSD(nn.Module):
    """`liger_fused_linear_jsd` with fixed options."""

    def __init__(
        self, jsd_beta: float = 0.5, ignore_index: int = -100, temperature: float = 1.0,
        accum_dtype: torch.dtype | None = None,
    ):  # fmt: skip
        super().__init__()
        assert temperature != 0, "temperature cannot be 0"
        self.jsd_beta, self.ignore_index, self.temperature = jsd_beta, ignore_index, temperature
        self.accum_dtype = accum_dtype

    def forward(
        self, student_input: Tensor, student_weight: Tensor, teacher_input: Tensor,
        teacher_weight: Tensor, shift_labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return liger_fused_linear_jsd(
            student_input, student_weight, teacher_input, teacher_weight, shift_labels,
            self.jsd_beta, self.ignore_index, self.temperature,
        )  # fmt: skip
