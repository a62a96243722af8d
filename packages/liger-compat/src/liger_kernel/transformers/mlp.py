"""The MLPs whose products are fused with their activation there; here they are `swiglu`'s."""

from typing import Any

from .swiglu import LigerFalconH1SwiGLUMLP, LigerSwiGLUMLP

__all__ = ["LigerFalconH1MLP", "LigerMLP"]


class LigerMLP(LigerSwiGLUMLP):
    def __init__(self, config: Any):
        super().__init__(config)


class LigerFalconH1MLP(LigerFalconH1SwiGLUMLP):
    """ValueError where `config` asks for biases."""

    def __init__(self, config: Any):
        if getattr(config, "mlp_bias", False):
            raise ValueError("LigerFalconH1MLP has no bias")
        super().__init__(config)
