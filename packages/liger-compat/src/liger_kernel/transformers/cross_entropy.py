"""Cross entropy of logits."""

from typing import Any

from torch import Tensor, nn

from .functional_losses import check_loss_options, liger_cross_entropy

__all__ = ["LigerCrossEntropyLoss"]


class LigerCrossEntropyLoss(nn.Module):
    """`liger_cross_entropy` with fixed options; AssertionError for those that are out of range."""

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100,
        lse_square_scale: float = 0.0, label_smoothing: float = 0.0, reduction: str = "mean",
        softcap: float | None = None, return_z_loss: bool = False,
        return_token_accuracy: bool = False, return_predicted_tokens: bool = False,
    ):  # fmt: skip
        super().__init__()
        check_loss_options(label_smoothing, reduction, softcap)
        self.weight, self.ignore_index, self.reduction = weight, ignore_index, reduction
        self.lse_square_scale, self.label_smoothing = lse_square_scale, label_smoothing
        self.softcap, self.return_z_loss = softcap, return_z_loss
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def forward(self, _input: Tensor, target: Tensor) -> Any:
        return liger_cross_entropy(
            _input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing, lse_square_scale=self.lse_square_scale,
            softcap=self.softcap, return_z_loss=self.return_z_loss,
            return_token_accuracy=self.return_token_accuracy,
            return_predicted_tokens=self.return_predicted_tokens,
        )  # fmt: skip
