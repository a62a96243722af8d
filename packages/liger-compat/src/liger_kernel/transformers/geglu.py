"""GeGLU MLPs, made from a model's configuration."""

from typing import Any

from torch import Tensor, nn

from .functional import liger_geglu

__all__ = ["LigerGEGLUMLP", "LigerGEGLUMLPForGemma4"]


class LigerGEGLUMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), the GELU by tanh."""

    def __init__(self, config: Any):
        super().__init__()
        self._build(config, config.intermediate_size)

    def _build(self, config: Any, intermediate_size: int) -> None:
        self.config, self.hidden_size = config, config.hidden_size
        self.intermediate_size = intermediate_size
        self.gate_proj = nn.Linear(self.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(self.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, self.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(liger_geglu(self.gate_proj(x), self.up_proj(x)))


class LigerGEGLUMLPForGemma4(LigerGEGLUMLP):
    """Twice as wide in layers that share keys and values, where `config.use_double_wide_mlp`."""

    def __init__(self, config: Any, layer_idx: int | None = None):
        nn.Module.__init__(self)
        shared = getattr(config, "num_kv_shared_layers", 0) or 0
        first = getattr(config, "num_hidden_layers", 0) - shared
        in_shared = layer_idx is not None and shared > 0 and layer_idx >= first
        double = in_shared and getattr(config, "use_double_wide_mlp", False)
        self._build(config, config.intermediate_size * (2 if double else 1))
