"""GroupNorm."""

import torch
from torch import Tensor, nn

from .functional import liger_group_norm
from .parameters import learned

__all__ = ["LigerGroupNorm"]


class LigerGroupNorm(nn.Module):
    """`liger_group_norm` with a weight and a bias, which is random where `bias` and else zeros.

    Args:
        num_channels, num_groups: the second divides the first.
        eps: added to the variance.
        init_fn: "ones" or "zeros", of the weight.
    """

    def __init__(
        self, num_channels: int, num_groups: int, eps: float = 1e-6, bias: bool = False,
        init_fn: str = "ones",
    ):  # fmt: skip
        super().__init__()
        assert num_channels % num_groups == 0, f"{num_groups} must divide {num_channels}"
        self.num_channels, self.num_groups = num_channels, num_groups
        self.eps = self.variance_epsilon = eps
        self.weight = learned(num_channels, init_fn)
        self.bias = nn.Parameter(torch.randn(num_channels) if bias else torch.zeros(num_channels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        assert hidden_states.dim() >= 3, f"[B, C, ...], not {tuple(hidden_states.shape)}"
        return liger_group_norm(
            hidden_states, self.weight, self.bias, self.num_channels, self.num_groups, self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}"
