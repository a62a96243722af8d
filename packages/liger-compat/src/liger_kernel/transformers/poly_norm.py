"""PolyNorm."""

import torch
from torch import Tensor, nn

from .functional import liger_poly_norm

__all__ = ["LigerPolyNorm"]


class LigerPolyNorm(nn.Module):
    """`liger_poly_norm` with its parameters: each power weighs 1 / 3, the bias is 1."""

    def __init__(self, eps: float = 1e-6, in_place: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1.0 / 3.0))
        self.bias = nn.Parameter(torch.tensor(1.0))
        self.variance_epsilon, self.in_place = eps, in_place

    def forward(self, hidden_states: Tensor) -> Tensor:
        return liger_poly_norm(hidden_states, self.weight, self.bias, self.variance_epsilon)

    def extra_repr(self) -> str:
        return f"eps={self.variance_epsilon}"
