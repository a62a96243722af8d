"""Rotary embedding: an attention layer's forward with one of its globals replaced.

The rotation is a module-level function that attention forwards reach as a global, and no module
global is written here. So the layer gets a copy of its class's forward (same code, defaults and
closure) with a copy of its module's globals in which that one name is another function. Globals
that are assigned anew after the patch are not seen.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .forms import Part, Verdict
from .patch import Patch
from .probe import difference, measured, normal
from .reporting import Row

__all__ = ["ROPE", "rebind"]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def rebind(function: Callable[..., Any], name: str, value: object) -> types.FunctionType:
    """A copy of `function`, decorators included, that sees `value` as its global `name`.

    Raises TypeError where a decorator is not a plain closure over the function it wraps.
    """
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"its forward is wrapped in a {type(function).__name__}")
    inner = getattr(function, "__wrapped__", None)
    wrapped: Any = None
    cells, names = function.__closure__, function.__globals__
    if inner is None:
        # a plain dict: torch.compile looks globals up in C, past any method of a subclass
        names = {**names, name: value}
    else:
        wrapped = rebind(inner, name, value)
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


# torch.compile guards a global by its name in the module that `__name__` names, which still holds
# the original. That is right for a function with the same defaults and no closure; so this one
# imports its op.
def _half_rotation(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor | None]:
    from liger_rope.rope import rope

    return rope(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)


# One copy for all layers of a class: compiled code of one layer then serves the next.
@functools.cache
def _with_rope(forward: Callable[..., Any], name: str) -> types.FunctionType:
    return rebind(forward, name, _half_rotation)


class RotaryPatch(Patch):
    __slots__ = ("function", "rotation")

    def __init__(self, module: nn.Module, row: Row, op: Callable[..., Any], rotation: str):
        super().__init__(module, row)
        self.rotation = rotation
        self.function = _with_rope(type(module).forward, rotation)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.inner(*args, **kwargs)
        return self.function(self.module, *args, **kwargs)

    # a copied function has no importable name: pickles and deep copies find it again by class and
    # name
    def __getstate__(self) -> dict[str, Any]:
        return {slot: getattr(self, slot) for slot in (*Patch.__slots__, "rotation")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for slot, value in state.items():
            setattr(self, slot, value)
        self.function = _with_rope(type(self.module).forward, self.rotation)


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


def _probe(module: nn.Module, op: Callable[..., Any]) -> Verdict:
    """Whether the attention's rotary function, run with all that it calls, is that of `rope`."""
    rotations = _rotations(module)
    if len(rotations) != 1:
        return Verdict("", None, f"calls several rotary functions: {', '.join(rotations)}")
    ((name, function),) = rotations.items()
    parameters = list(inspect.signature(function).parameters)
    if parameters not in (["q", "k", "cos", "sin"], ["q", "k", "cos", "sin", "unsqueeze_dim"]):
        return Verdict("", None, f"{name} takes ({', '.join(parameters)})")
    for heads, keywords in ((1, {}), (2, {"unsqueeze_dim": 2}))[: len(parameters) - 3]:
        for dtype in TOLERANCE:
            gap = _try(function, op, dtype, heads, keywords)
            if gap > TOLERANCE[dtype]:
                return Verdict("", None, f"{name} is no half rotation, {measured(gap)}")
    try:
        _with_rope(type(module).forward, name)
    except TypeError as error:
        return Verdict("rope half", None, str(error))
    return Verdict("rope half", {"rotation": name})


def _try(
    function: Callable[..., Any],
    op: Callable[..., Any],
    dtype: torch.dtype,
    heads: int,
    keywords: dict[str, int],
) -> float:
    batch, tokens, width = 2, 5, 16
    q, k = (
        normal(batch, 3, tokens, width, dtype=dtype),
        normal(batch, 1, tokens, width, dtype=dtype),
    )
    if heads == 2:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    worst = 0.0
    # full width must agree; part of the width only where the original knows it
    for rotated in (width, width // 2):
        cos, sin = (
            normal(batch, tokens, rotated, dtype=dtype),
            normal(batch, tokens, rotated, dtype=dtype),
        )
        try:
            expected = function(q, k, cos, sin, **keywords)
        except Exception:
            if rotated == width:
                return float("inf")
            continue
        worst = max(worst, difference(expected, op(q, k, cos, sin, unsqueeze_dim=heads)))
    return worst


ROPE = Part("rope", "liger_rope", "rope", ("",), _is_attention, type, _probe, RotaryPatch)
