"""Cross entropy of a linear head."""

from typing import Any

import torch
from torch import Tensor, nn

from .functional_losses import check_loss_options, liger_fused_linear_cross_entropy

__all__ = ["LigerFusedLinearCrossEntropyLoss"]


class LigerFusedLinearCrossEntropyLoss(nn.Module):
    """`liger_fused_linear_cross_entropy` with fixed options, called with the head's weight first.

    AssertionError for options that are out of range.
    """

    def __init__(
        self, ce_weight: Tensor | None = None, ignore_index: int = -100,
        lse_square_scale: float = 0.0, label_smoothing: float = 0.0, reduction: str = "mean",
        softcap: float | None = None, return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None, use_token_scaling: bool = False,
        return_token_accuracy: bool = False, return_predicted_tokens: bool = False,
    ):  # fmt: skip
        super().__init__()
        check_loss_options(label_smoothing, reduction, softcap)
        self.ce_weight, self.ignore_index, self.reduction = ce_weight, ignore_index, reduction
        self.lse_square_scale, self.label_smoothing = lse_square_scale, label_smoothing
        self.softcap, self.return_z_loss, self.accum_dtype = softcap, return_z_loss, accum_dtype
        self.use_token_scaling = use_token_scaling
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> Any:
        return liger_fused_linear_cross_entropy(
            _input, lin_weight, target, bias, self.ce_weight, self.ignore_index,
            self.lse_square_scale, self.label_smoothing, self.reduction, self.softcap,
            self.return_z_loss, self.accum_dtype, self.use_token_scaling,
            self.return_token_accuracy, self.return_predicted_tokens,
        )  # fmt: skip
