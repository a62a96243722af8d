"""RMSNorm with the constructor that Megatron-Core calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..transformers.functional import liger_rms_norm

__all__ = ["LigerMegatronRMSNorm"]


class LigerMegatronRMSNorm(nn.Module):
    """`liger_rms_norm` with a weight.

    Args:
        config: of which `normalization`, `sequence_parallel` and `layernorm_zero_centered_gamma`
            are read, where they are there.
        hidden_size: N.
        eps: added to the mean square.
        zero_centered_gamma: whether the weight is stored less 1.
        persist_layer_norm, normalization: accepted, without effect.

    Raises ValueError where `config` asks for another normalization.
    """

    def __init__(
        self, config: Any, hidden_size: int | Sequence[int], eps: float = 1e-5,
        persist_layer_norm: bool = False, zero_centered_gamma: bool = False,
        normalization: str = "RMSNorm",
    ):  # fmt: skip
        super().__init__()
        asked = getattr(config, "normalization", "RMSNorm")
        if asked != "RMSNorm":
            raise ValueError(f"config.normalization must be RMSNorm, not {asked!r}")
        self.config, self.eps = config, eps
        self.hidden_size = torch.Size(
            [hidden_size] if isinstance(hidden_size, int) else hidden_size
        )
        centered = zero_centered_gamma or getattr(config, "layernorm_zero_centered_gamma", False)
        self.zero_centered_gamma = bool(centered)
        self.weight = nn.Parameter(torch.empty(self.hidden_size))
        self.reset_parameters()
        # Megatron's optimizer sums such gradients over the ranks that share a sequence
        sequence_parallel = bool(getattr(config, "sequence_parallel", False))
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.0 if self.zero_centered_gamma else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return liger_rms_norm(x, self.weight, self.eps, 1.0 if self.zero_centered_gamma else 0.0)

    def extra_repr(self) -> str:
        return (
            f"hidden_size={tuple(self.hidden_size)}, eps={self.eps}, "
            f"zero_centered_gamma={self.zero_centered_gamma}"
        )
