"""MLPs over tiles of tokens, each computed again in the backward."""

from typing import Any

from liger_activations import tiled_mlp
from torch import Tensor

from .geglu import LigerGEGLUMLP
from .parameters import check_activation
from .swiglu import LigerSwiGLUMLP

__all__ = ["LigerTiledGEGLUMLP", "LigerTiledSwiGLUMLP"]

GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")


class LigerTiledSwiGLUMLP(LigerSwiGLUMLP):
    """`LigerSwiGLUMLP` through `liger_activations.tiled_mlp`; `num_shards` are its tiles."""

    def __init__(self, config: Any, num_shards: int | None = None):
        super().__init__(config)
        self.num_shards = num_shards

    def forward(self, x: Tensor) -> Tensor:
        return tiled_mlp(super().forward, x, self.num_shards, module=self)


class LigerTiledGEGLUMLP(LigerGEGLUMLP):
    """`LigerGEGLUMLP` through `liger_activations.tiled_mlp`; ValueError for another activation."""

    def __init__(self, config: Any, num_shards: int | None = None):
        check_activation(getattr(config, "hidden_act", GELU[0]), GELU)
        super().__init__(config)
        self.num_shards = num_shards

    def forward(self, x: Tensor) -> Tensor:
        return tiled_mlp(super().forward, x, self.num_shards, module=self)
