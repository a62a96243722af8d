"""Stand-ins for names whose operation has no counterpart in the Liger packages yet.

They can be imported, as tools do for all they know; using one raises NotImplementedError.
"""

from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["missing_class", "missing_function"]


def missing_function(name: str, package: str) -> Callable[..., NoReturn]:
    """A function `name` that raises when it is called."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{name}: not in liger-compat yet, {package} will have it")

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Not yet; {package} will have it."
    return refuse


def missing_class(name: str, package: str) -> Any:
    """A class `name`, of which neither an instance nor `.apply` can be had."""
    refuse = missing_function(name, package)
    return type(
        name, (), {"__init__": refuse, "apply": staticmethod(refuse), "__doc__": refuse.__doc__}
    )
