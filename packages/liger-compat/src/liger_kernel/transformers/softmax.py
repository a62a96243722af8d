"""Softmax."""

from torch import Tensor, nn

from .functional import liger_softmax

__all__ = ["LigerSoftmax"]


class LigerSoftmax(nn.Module):
    """`liger_softmax`: of the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return liger_softmax(x)
