"""Fill fresh memory with what cannot pass for a result, so that an unwritten element shows."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["filled", "install"]

_FUNCTIONS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch, "empty_permuted"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
)
_state: dict[str, float | None] = {"value": None}


@contextlib.contextmanager
def filled(value: float = float("nan")) -> Iterator[None]:
    """Inside, `torch.empty` and its like return tensors full of `value` (integers: a large one)."""
    before, _state["value"] = _state["value"], value
    try:
        yield
    finally:
        _state["value"] = before


def install() -> None:
    """Wrap the allocating functions of torch once; outside `filled` nothing changes."""
    for owner, name in _FUNCTIONS:
        function = getattr(owner, name)
        if not hasattr(function, "__wrapped__"):
            setattr(owner, name, _wrap(function))


def _wrap(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def empty(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        value = _state["value"]
        # compilers allocate fake tensors, inside and outside of a trace
        if value is None or type(out) is not torch.Tensor or out.is_complex():
            return out
        if torch.compiler.is_compiling():
            return out
        with torch.no_grad():
            if out.is_floating_point():
                return out.fill_(value)
            return out.fill_(True if out.dtype == torch.bool else torch.iinfo(out.dtype).max // 3)

    return empty
