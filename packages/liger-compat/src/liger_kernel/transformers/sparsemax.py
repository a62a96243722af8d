"""Sparsemax."""

from torch import Tensor, nn

from .functional import liger_sparsemax

__all__ = ["LigerSparsemax"]


class LigerSparsemax(nn.Module):
    """`liger_sparsemax` of a dimension."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return liger_sparsemax(x, self.dim)
