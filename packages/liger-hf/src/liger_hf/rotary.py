"""Rotary embedding: an attention layer's forward with its rotation replaced, see `rebind`."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .forms import Part, Verdict, load
from .probe import Same
from .rebind import rebind
from .replaced import Patch
from .reporting import Row
from .rotations import PACKAGE, Rotation, recognise

__all__ = ["ROPE"]


def _rebound(
    forward: Callable[..., Any], rotations: tuple[tuple[str, Rotation], ...]
) -> types.FunctionType:
    ops = tuple(load(PACKAGE, r.form.op) for _, r in rotations)
    return _with_ops(forward, rotations, ops, tuple(_globals(forward)))


# One copy for all layers of a class: compiled code of one layer then serves the next. `seen` are
# the globals that it reaches, as they are: a copy keeps those of its time.
@functools.cache
def _with_ops(
    forward: Callable[..., Any], rotations: tuple[tuple[str, Rotation], ...], ops: tuple[Any, ...],
    seen: tuple[Same, ...],
) -> types.FunctionType:  # fmt: skip
    bound = {name: r.bind(op) for (name, r), op in zip(rotations, ops, strict=True)}
    return rebind(forward, bound)


def _globals(forward: Callable[..., Any]) -> Iterator[Same]:
    """Of the names that a forward, and the functions inside it, may look up; missing ones too."""
    inner = inspect.unwrap(forward)
    codes = [inner.__code__] if isinstance(inner, types.FunctionType) else []
    while codes:
        code = codes.pop()
        yield from (Same(inner.__globals__.get(name)) for name in code.co_names)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]


class RotaryPatch(Patch):
    __slots__ = ("function", "rotations")

    def __init__(self, module: nn.Module, row: Row, rotations: tuple[tuple[str, Rotation], ...]):
        super().__init__(module, row)
        self.rotations = rotations
        self.function = _rebound(type(module).forward, rotations)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.inner(*args, **kwargs)
        return self.function(self.module, *args, **kwargs)

    # a copied function has no importable name: pickles and deep copies make it once more
    def __getstate__(self) -> dict[str, Any]:
        return {slot: getattr(self, slot) for slot in (*Patch.__slots__, "rotations")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for slot, value in state.items():
            setattr(self, slot, value)
        self.function = _rebound(type(self.module).forward, self.rotations)


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
