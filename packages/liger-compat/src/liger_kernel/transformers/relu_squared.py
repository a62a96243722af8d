"""Squared ReLU."""

from torch import Tensor, nn

from .functional import liger_relu_squared

__all__ = ["LigerReLUSquared"]


class LigerReLUSquared(nn.Module):
    """`liger_relu_squared`."""

    def forward(self, x: Tensor) -> Tensor:
        return liger_relu_squared(x)
