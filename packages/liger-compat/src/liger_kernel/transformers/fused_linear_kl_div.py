"""Kullback-Leibler divergence of a head from probabilities of a teacher."""

import torch
from torch import Tensor, nn

from .functional_divergences import liger_fused_linear_kl_div

__all__ = ["LigerFusedLinearKLDivLoss"]


class LigerFusedLinearKLDivLoss(nn.Module):
    """`liger_fused_linear_kl_div` with fixed options."""

    def __init__(
        self, reduction: str = "batchmean", ignore_index: int = -100, temperature: float = 1.0,
        eps: float = 1e-10, accum_dtype: torch.dtype | None = None,
    ):  # fmt: skip
        super().__init__()
        assert temperature != 0, "temperature cannot be 0"
        self.reduction, self.ignore_index, self.temperature = reduction, ignore_index, temperature
        self.eps, self.accum_dtype = eps, accum_dtype

    def forward(
        self, student_input: Tensor, student_weight: Tensor, target: Tensor,
        shift_labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return liger_fused_linear_kl_div(
            student_input, student_weight, target, shift_labels, self.reduction,
            self.ignore_index, self.temperature,
        )  # fmt: skip
