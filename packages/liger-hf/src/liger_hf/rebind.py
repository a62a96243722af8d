"""A copy of a function that sees other values under the names of some of its globals.

A model's rotation is a module-level function that attention forwards reach as a global, and no
module global is written here: the layer gets a copy of its class's forward (same code, defaults and
closure) with a copy of its module's globals. Globals that are assigned anew later are not seen.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["rebind"]


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
