"""LayerNorm."""

from typing import Any

import torch
from torch import Tensor, nn

from .functional import liger_layer_norm
from .parameters import learned

__all__ = ["LigerLayerNorm"]


class LigerLayerNorm(nn.Module):
    """`liger_layer_norm` with a weight and a bias, which is random where `bias` and else zeros.

    Args:
        hidden_size: N.
        eps: added to the variance.
        init_fn: "ones" or "zeros", of the weight.
        impl, mode, backend: accepted, without effect: the device decides.
    """

    def __init__(
        self, hidden_size: int, eps: float = 1e-6, bias: bool = False, init_fn: str = "ones",
        impl: Any = None, mode: Any = None, backend: Any = None,
    ):  # fmt: skip
        super().__init__()
        self.hidden_size, self.eps, self.variance_epsilon = hidden_size, eps, eps
        self.weight = learned(hidden_size, init_fn)
        self.bias = nn.Parameter(torch.randn(hidden_size) if bias else torch.zeros(hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return liger_layer_norm(hidden_states, self.weight, self.bias, self.variance_epsilon)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.eps}"
