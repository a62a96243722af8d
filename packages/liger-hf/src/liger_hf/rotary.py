"""Rotary embedding: an attention layer's forward with its rotation replaced, see `rebind`."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from .forms import Part, Verdict, load
from .rebind import Rebound, rebound
from .reporting import Row
from .rotations import PACKAGE, Rotation, recognise

__all__ = ["ROPE"]


# one for all layers that turn alike, whose copies are told apart by it
@functools.cache
def _bound(rotation: Rotation, op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    return rotation.bind(op, function)


class RotaryPatch(Rebound):
    __slots__ = ("rotations",)

    def __init__(self, module: nn.Module, row: Row, rotations: tuple[tuple[str, Rotation], ...]):
        super().__init__(module, row)
        self.rotations = rotations
        self.function = self.make()

    def make(self) -> types.FunctionType:
        return _rebound(type(self.module).forward, self.rotations)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.inner(*args, **kwargs)
        return self.function(self.module, *args, **kwargs)


def _rebound(
    forward: Callable[..., Any], rotations: tuple[tuple[str, Rotation], ...]
) -> types.FunctionType:
    names = inspect.unwrap(forward).__globals__
    return rebound(forward, {
        name: _bound(r, load(PACKAGE, r.form.op), names[name]) for name, r in rotations
    })  # fmt: skip


def _rotations(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """Rotary functions among the globals that the module's forward names."""
    forward = inspect.unwrap(type(module).forward)
    found = {}
    if isinstance(forward, types.FunctionType):
        for name in forward.__code__.co_names:
            value = forward.__globals__.get(name)
            # the kernels package turns such a function into a module
            function = getattr(value, "forward", value)
            if "rotary" in name and callable(function) and not isinstance(value, type):
                found[name] = function
    return found


def _is_attention(module: nn.Module) -> bool:
    return bool(_rotations(module))


def _probe(module: nn.Module) -> Verdict:
    """Whether the attention's rotary functions, run with all that they call, are those of an op."""
    verdicts = {name: recognise(name, f) for name, f in _rotations(module).items()}
    words = " and ".join(dict.fromkeys(words for words, *_ in verdicts.values()))
    rotations = tuple((name, r) for name, (_, r, _) in verdicts.items() if r is not None)
    if len(rotations) != len(verdicts):
        refusals = (words for words, rotation, _ in verdicts.values() if rotation is None)
        return Verdict("", reason="; ".join(refusals))
    try:
        _rebound(type(module).forward, rotations)
    except TypeError as error:
        return Verdict(words, reason=str(error))
    ops = dict.fromkeys(rotation.form.op for _, rotation in rotations)
    numbers = ", ".join(f"difference {gap:.1e}" for *_, gap in verdicts.values())
    options = {"rotations": rotations}
    return Verdict(words, f", {PACKAGE}.".join(ops), options, numbers=numbers)


ROPE = Part("rope", PACKAGE, "rope", ("",), _is_attention, type, _probe, RotaryPatch)
