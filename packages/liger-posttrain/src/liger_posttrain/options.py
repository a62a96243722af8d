"""Choices by name, and options that the chosen functions take by keyword."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

__all__ = ["call", "check_options", "choose", "options_of", "tensors_of"]

Row = TypeVar("Row")


def choose(owner: str, what: str, table: Mapping[str, Row], name: str) -> Row:
    """The row of that name; the error lists those that there are."""
    if name not in table:
        raise ValueError(f"{owner}: {what} must be one of {', '.join(table)}, not {name!r}")
    return table[name]


@cache
def tensors_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments before the options, which are keyword-only."""
    return _named(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@cache
def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    return _named(function, inspect.Parameter.KEYWORD_ONLY)


def _named(function: Callable[..., Any], kind: Any) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is kind)


def call(function: Callable[..., Any], given: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """`function` of what it names, of all that is given, and of those options that it takes."""
    own = options_of(function)
    tensors = (given[name] for name in tensors_of(function))
    return function(*tensors, **{n: v for n, v in options.items() if n in own})


def check_options(
    owner: str, chosen: str, takes: Iterable[str], options: Mapping[str, Any]
) -> None:
    """Raises for an option that what was chosen does not take."""
    for name in options:
        if name not in takes:
            listed = ", ".join(sorted(takes)) or "no options"
            raise TypeError(f"{owner}: {chosen} takes {listed}; not {name!r}")
