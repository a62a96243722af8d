"""Replace an attribute of one module instance, and put the old one back.

A `Patch` is one replaced attribute of one module instance. What replaces it stands in the
instance's `__dict__`, where Python finds it before the class attribute, so no class and no module
global is written, and parameters, submodules and state dict keys stay. A patch is an object rather
than a closure, so that it follows its module through deepcopy, pickle and `torch.save`.

Each patched module keeps its patches under `_liger_hf`. Another library may wrap a patched forward
later (autocast wrappers of accelerate do); `revert` then leaves the wrapper alone and the patch
inside it becomes a pass-through.
"""

from collections.abc import Callable
from enum import Enum
from types import CodeType
from typing import Any

from torch import nn

from .reporting import Row

__all__ = ["RECORD", "Missing", "ModelForward", "Patch", "leftover", "patches"]

RECORD = "_liger_hf"


class Missing(Enum):
    """The attribute was not on the instance. An Enum: copies and pickles keep its identity."""

    MISSING = 0


class Patch:
    """A replacement of `module.<name>`.

    Subclasses define `__call__`, each its own (torch.compile keeps compiled code per code object),
    and pass on to `inner` while not active.

    Attributes:
        row: what the report says of it.
        slot: the key of the module's `__dict__` that holds it; a property may choose another one.
        original: what was there before.
    """

    __slots__ = ("active", "module", "name", "original", "row", "slot")

    def __init__(self, module: nn.Module, row: Row, name: str = "forward"):
        self.module = module
        self.row = row
        self.name = name
        self.slot = ""
        self.original: Any = Missing.MISSING
        self.active = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        """What the module would do without the patch."""
        if self.original is Missing.MISSING:
            return getattr(type(self.module), self.name)(self.module, *args, **kwargs)
        return self.original(*args, **kwargs)

    @property
    def replacement(self) -> Callable[..., Any]:
        """What stands in the module: a method, for which torch.compile looks at its code, so that
        layers share what is compiled. Objects it tells apart, and compiles every layer anew.
        """
        return self.__call__

    def install(self) -> None:
        attributes = vars(self.module)
        # of a head that was replaced since: those of its model and loss are still here
        for old in patches(self.module):
            if old.name == self.name:
                old.remove()
        while (put_back := leftover(self.module, self.name)) is not None:
            put_back.remove()
        before, replacement = dict(attributes), self.replacement
        setattr(self.module, self.name, replacement)
        self.slot = next(key for key, value in attributes.items() if value is replacement)
        self.original = before.get(self.slot, Missing.MISSING)
        self.active = True
        attributes.setdefault(RECORD, {})[self.slot] = self

    def remove(self) -> None:
        attributes = vars(self.module)
        self.active = False
        # equal, not the same: each access to a method makes another
        if attributes.get(self.slot) == self.replacement:
            if self.original is Missing.MISSING:
                del attributes[self.slot]
            else:
                attributes[self.slot] = self.original
        record = attributes.get(RECORD, {})
        record.pop(self.slot, None)
        if not record:
            attributes.pop(RECORD, None)


class ModelForward(Patch):
    """A replacement of the forward of a whole model, whose signature and code others look at."""

    __slots__ = ()

    @property
    def replacement(self) -> Callable[..., Any]:
        """An object, as methods have no `__wrapped__` of their own."""
        return self

    def given(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Without the model: accelerate's unwrap_model binds the innermost forward that it finds to
        it once more.
        """
        return args[1:] if args and args[0] is self.module else args

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """For `inspect.signature`: Trainer and generate() read the inputs of a model's forward."""
        if self.original is Missing.MISSING:
            return getattr(type(self.module), self.name).__get__(self.module)
        return self.original

    @property
    def __code__(self) -> CodeType:
        """For torch.export, which names the forward that it exports by file and line."""
        return type(self).__call__.__code__


def patches(module: nn.Module) -> list[Patch]:
    """The active patches of one module."""
    return list(vars(module).get(RECORD, {}).values())


def leftover(module: nn.Module, name: str = "forward") -> Patch | None:
    """A patch that was removed while a wrapper of others held it, and that they have put back."""
    held = vars(module).get(name)
    patch = getattr(held, "__self__", held)
    ours = isinstance(patch, Patch) and patch.module is module and not patch.active
    return patch if ours else None
