"""SwiGLU MLPs, made from a model's configuration."""

from typing import Any

from torch import Tensor, nn

from ..missing import missing_class
from .functional import liger_fused_gate_up_swiglu, liger_swiglu
from .parameters import check_activation

__all__ = [
    "LigerBlockSparseTop2MLP",
    "LigerExperts",
    "LigerFalconH1SwiGLUMLP",
    "LigerHunyuanV1SwiGLUMLP",
    "LigerPhi3SwiGLUMLP",
    "LigerQwen3MoeSwiGLUMLP",
    "LigerSwiGLUMLP",
    "LigerSwiGLUMLPForMuseGlimmer",
]

SILU = ("silu", "swish")

LigerExperts = missing_class("LigerExperts", "liger-moe")


class LigerSwiGLUMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); ValueError where `config` has another activation."""

    def __init__(self, config: Any, intermediate_size: int | None = None):
        super().__init__()
        self._build(config, config.hidden_act, intermediate_size)

    def _build(
        self,
        config: Any,
        activation: str | None,
        intermediate_size: int | None = None,
        bias: bool = False,
    ) -> None:
        check_activation(activation, SILU)
        self.config, self.hidden_size = config, config.hidden_size
        size = config.intermediate_size if intermediate_size is None else intermediate_size
        self.intermediate_size = size
        self.gate_proj = nn.Linear(self.hidden_size, size, bias=bias)
        self.up_proj = nn.Linear(self.hidden_size, size, bias=bias)
        self.down_proj = nn.Linear(size, self.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(liger_swiglu(self.gate_proj(x), self.up_proj(x)))


class LigerQwen3MoeSwiGLUMLP(LigerSwiGLUMLP):
    pass


class LigerSwiGLUMLPForMuseGlimmer(LigerSwiGLUMLP):
    """The activation is `config.hidden_activation`, or `hidden_act`."""

    def __init__(self, config: Any):
        nn.Module.__init__(self)
        activation = getattr(config, "hidden_activation", None)
        self._build(config, activation or getattr(config, "hidden_act", None))


class LigerHunyuanV1SwiGLUMLP(LigerSwiGLUMLP):
    def __init__(self, config: Any, layer_idx: int | None = None, is_shared_mlp: bool = False):
        super().__init__(config)
        self.layer_idx = layer_idx


class LigerFalconH1SwiGLUMLP(LigerSwiGLUMLP):
    """m1 * down(silu(m0 * gate(x)) * up(x)), m as `config.mlp_multipliers`."""

    def __init__(self, config: Any):
        nn.Module.__init__(self)
        self._build(config, config.hidden_act, bias=getattr(config, "mlp_bias", False))
        self.gate_multiplier, self.down_multiplier = map(float, config.mlp_multipliers)

    def forward(self, x: Tensor) -> Tensor:
        y = liger_swiglu(self.gate_proj(x), self.up_proj(x), self.gate_multiplier)
        return self.down_proj(y) * self.down_multiplier


class LigerBlockSparseTop2MLP(nn.Module):
    """w2(silu(w1(x)) * w3(x))."""

    def __init__(self, config: Any):
        super().__init__()
        check_activation(config.hidden_act, SILU)
        self.ffn_dim, self.hidden_dim = config.intermediate_size, config.hidden_size
        self.w1 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)
        self.w2 = nn.Linear(self.ffn_dim, self.hidden_dim, bias=False)
        self.w3 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(liger_swiglu(self.w1(x), self.w3(x)))


class LigerPhi3SwiGLUMLP(nn.Module):
    """down(silu(gate) * up) with gate and up in one projection."""

    def __init__(self, config: Any):
        super().__init__()
        check_activation(config.hidden_act, SILU)
        self.config, self.hidden_size = config, config.hidden_size
        self.intermediate_size = config.intermediate_size
        self.gate_up_proj = nn.Linear(self.hidden_size, 2 * self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(liger_fused_gate_up_swiglu(self.gate_up_proj(x)))
