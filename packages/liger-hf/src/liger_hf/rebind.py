"""A copy of a function that sees other values under the names of some of its globals.

What rotates and what makes masks are module-level functions that forwards reach as globals, and no
module global is written here: the layer gets a copy of its class's forward (same code, defaults and
closure) with a copy of its module's globals. Globals that are assigned anew later are not seen.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .probe import Same
from .replaced import Patch

__all__ = ["Rebound", "rebind", "rebound"]


class Rebound(Patch):
    """A patch that calls a copied `function`, which `make` makes."""

    __slots__ = ("function",)

    def make(self) -> types.FunctionType:
        raise NotImplementedError

    # a copied function has no importable name: pickles and deep copies make it once more
    def __getstate__(self) -> dict[str, Any]:
        slots = (slot for kind in type(self).__mro__ for slot in getattr(kind, "__slots__", ()))
        return {slot: getattr(self, slot) for slot in slots if slot != "function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for slot, value in state.items():
            setattr(self, slot, value)
        self.function = self.make()


def rebound(forward: Callable[..., Any], values: Mapping[str, Any]) -> types.FunctionType:
    """`rebind`, with one copy for all layers of a class: compiled code of one then serves the next.

    The `values` tell copies apart by identity; so do the globals that the forward reaches, as they
    are: a copy keeps those of its time.
    """
    given = tuple((name, Same(value)) for name, value in values.items())
    return _copy(forward, given, tuple(_globals(forward)))


@functools.cache
def _copy(
    forward: Callable[..., Any], values: tuple[tuple[str, Same], ...], seen: tuple[Same, ...]
) -> types.FunctionType:
    return rebind(forward, {name: same.value for name, same in values})


def _globals(forward: Callable[..., Any]) -> Iterator[Same]:
    """Of the names that a forward, and the functions inside it, may look up; missing ones too."""
    inner = inspect.unwrap(forward)
    codes = [inner.__code__] if isinstance(inner, types.FunctionType) else []
    while codes:
        code = codes.pop()
        yield from (Same(inner.__globals__.get(name)) for name in code.co_names)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]


def rebind(function: Callable[..., Any], values: Mapping[str, object]) -> types.FunctionType:
    """A copy of `function`, decorators included, that sees `values` as its globals.

    Raises TypeError where a decorator is not a plain closure over the function it wraps.
    """
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"its forward is wrapped in a {type(function).__name__}")
    inner = getattr(function, "__wrapped__", None)
    wrapped: Any = None
    cells, names = function.__closure__, function.__globals__
    if inner is None:
        # A plain dict: torch.compile looks globals up in C, past any method of a subclass. Without
        # __name__: torch.compile would guard them as those of the module of this name.
        names = {k: v for k, v in names.items() if k != "__name__"} | dict(values)
    else:
        wrapped = rebind(inner, values)
        cells = tuple(
            types.CellType(wrapped) if _holds(cell, inner) else cell for cell in cells or ()
        )
        if not any(_holds(cell, wrapped) for cell in cells):
            raise TypeError("its forward is decorated in a way that cannot be copied")
    other = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, cells
    )
    functools.update_wrapper(other, function)
    other.__kwdefaults__ = function.__kwdefaults__
    vars(other).pop("__wrapped__")
    if inner is not None:
        vars(other)["__wrapped__"] = wrapped
    return other


def _holds(cell: types.CellType, value: object) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:
        return False
