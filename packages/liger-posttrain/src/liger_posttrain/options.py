"""Choices by name, and functions that take what they name of all that is there."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

__all__ = ["Formula", "check_taken", "choose"]

Row = TypeVar("Row")


class Formula:
    """A function in a table: its arguments are tensors by name, keyword-only ones are options."""

    def __init__(self, function: Callable[..., Any]):
        parameters = inspect.signature(function).parameters.values()
        self.function = function
        self.tensors = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def __call__(self, given: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """Of all that is given what it names, and of the options those that it has."""
        own = {name: options[name] for name in self.options if name in options}
        return self.function(*[given[name] for name in self.tensors], **own)

    def __repr__(self) -> str:
        return f"Formula({self.function.__name__})"


def choose(owner: str, what: str, table: Mapping[str, Row], name: str) -> Row:
    """The row of that name; the error lists those that there are."""
    if name not in table:
        raise ValueError(f"{owner}: {what} must be one of {', '.join(table)}, not {name!r}")
    return table[name]


def check_taken(owner: str, chosen: str, takes: Iterable[str], options: Mapping[str, Any]) -> None:
    """Raises for an option that what was chosen does not take."""
    for name in options:
        if name not in takes:
            listed = ", ".join(sorted(takes)) or "no options"
            raise TypeError(f"{owner}: neither {chosen} ({listed}) nor the head takes {name!r}")
