"""Kullback-Leibler divergence."""

from typing import Any

from torch import Tensor, nn

from .functional_divergences import liger_kl_div

__all__ = ["LigerKLDIVLoss"]


class LigerKLDIVLoss(nn.KLDivLoss):
    """`torch.nn.KLDivLoss` on `liger_kl_div`; `eps` comes first and has no effect."""

    def __init__(self, eps: float = 1e-10, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.eps = eps

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return liger_kl_div(
            y_pred, y_true, reduction=self.reduction, log_target=self.log_target, eps=self.eps
        )
