"""The causal mask of a model that numbers its tokens itself.

Without an attention mask, transformers looks at the positions for packed sequences: a read of the
device at the start of every step, after which the GPU waits until Python has launched the first
layers. Code that is traced cannot look and makes an explicit mask, with which SDPA does not take
its causal kernel. Where the caller gave no positions, the model has counted them and each row is
one sequence: in training its forward calls the mask functions without positions, see `rebind`.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .forms import Part, Verdict
from .probe import Same, bare
from .rebind import Rebound, rebind, rebound
from .replaced import ModelForward
from .reporting import Row

__all__ = ["MASK"]

PACKAGE = "transformers.masking_utils"
# token 0 stands for padding: some models count past it
TOKENS = ((3, 1, 2, 0, 0), (0, 1, 2, 1, 3))


class MaskPatch(Rebound, ModelForward):
    """The forward of a model called without positions and without a mask, in training."""

    __slots__ = ()

    def __init__(self, module: nn.Module, row: Row):
        super().__init__(module, row)
        self.function = self.make()

    def make(self) -> types.FunctionType:
        forward = type(self.module).forward
        return rebound(forward, {name: _blind(f) for name, f in _masks(self.module).items()})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = self.given(args)
        counts = kwargs.get("position_ids") is None and kwargs.get("attention_mask") is None
        # positional arguments after the tokens may be a mask and positions
        if not (self.active and self.module.training and counts and len(args) < 2):
            return self.inner(*args, **kwargs)
        return self.function(self.module, *args, **kwargs)


@functools.cache
def _blind(function: Callable[..., Any]) -> Callable[..., Any]:
    def mask(*args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return mask


def _masks(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """The functions of transformers among a forward's globals that make masks from positions."""
    forward = inspect.unwrap(type(module).forward)
    found: dict[str, Callable[..., Any]] = {}
    if isinstance(forward, types.FunctionType):
        for name in forward.__code__.co_names:
            value = forward.__globals__.get(name)
            if not isinstance(value, types.FunctionType) or value.__module__ != PACKAGE:
                continue
            if "position_ids" in inspect.signature(value).parameters:
                found[name] = value
    return found


def _is_model(module: nn.Module) -> bool:
    names = inspect.signature(type(module).forward).parameters
    return "position_ids" in names and bool(_masks(module))


class _Asked(Exception):
    """Ends a forward at its first mask."""


def _probe(module: Any) -> Verdict:
    """Whether the positions that the model's own code gives to its first mask count the tokens."""

    def ask(*args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> NoReturn:
        raise _Asked(position_ids)

    form = "positions of its own"
    forward = rebind(type(module).forward, dict.fromkeys(_masks(module), ask))
    embedding = module.get_input_embeddings()
    (name,) = [name for name, child in module.named_children() if child is embedding]
    other = bare(module, {name: nn.Embedding(4, embedding.embedding_dim)})
    tokens = torch.tensor(TOKENS)
    try:
        forward(other, input_ids=tokens, use_cache=False)
    except _Asked as asked:
        (positions,) = asked.args
    expected = torch.arange(tokens.shape[1])
    if isinstance(positions, Tensor) and positions.ndim == 2 and (positions == expected).all():
        return Verdict(form, "create_causal_mask without them", {})
    return Verdict("", reason="its positions do not count its tokens")


MASK = Part("mask", PACKAGE, "create_causal_mask", (), _is_model, Same, _probe, MaskPatch)
