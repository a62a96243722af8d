"""Patch a model in place of its instances, and take the patch back.

A `Patch` is one replaced attribute of one module instance. What replaces it stands in the
instance's `__dict__`, where Python finds it before the class attribute, so no class and no module
global is written, and parameters, submodules and state dict keys stay. A patch is an object rather
than a closure, so that it follows its module through deepcopy, pickle and `torch.save`.

Each patched module keeps its patches under `_liger_hf`. Another library may wrap a patched forward
later (autocast wrappers of accelerate do); `revert` then leaves the wrapper alone and the patch
inside it becomes a pass-through.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from torch import nn

from .reporting import Report, Row

__all__ = [
    "Missing",
    "NothingToReplace",
    "Patch",
    "applied",
    "apply",
    "explain",
    "report",
    "revert",
]

RECORD = "_liger_hf"
_lock = threading.RLock()


class NothingToReplace(ValueError):
    """`apply` found no layer that it could replace."""


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


def patches(module: nn.Module) -> list[Patch]:
    """The active patches of one module."""
    return list(vars(module).get(RECORD, {}).values())


def apply(
    model: nn.Module,
    *,
    norms: bool = True,
    mlp: bool = True,
    moe: bool = True,
    rope: bool = True,
    loss: bool = True,
) -> Report:
    """Replace norms, MLPs, experts, rotary embeddings, and head with loss by Liger kernels.

    Layers are recognised by what they compute: each replacement is run beside the original on a
    small input, and a layer with which no replacement agrees is left alone. Only this instance
    changes; `revert` undoes it.

    Args:
        model: a `transformers.PreTrainedModel`, or a module that holds one (PEFT, DDP, FSDP2 and
            compiled models do; FSDP1 is to wrap a model that is patched already).
        norms: RMS and layer norms, with a gate or without, on `liger_norms`.
        mlp: gated and squared-ReLU MLPs, on `liger_activations`.
        moe: the gate of experts that go by transformers' experts interface, likewise; the products
            beside it stay those of torch.
        rope: rotary embeddings in attention layers, on `liger_rope`.
        loss: in training with labels, the loss is computed from hidden states on `liger_losses`,
            and `outputs.logits` turns into real logits when something reads it. In evaluation and
            without labels logits are real. A batch without a single label to learn gives 0, where
            transformers gives NaN.

    Returns:
        What was replaced and what was not, with the reasons; `print` it. A second call changes
        nothing.

    Raises:
        TypeError: `model` is not a module.
        ValueError: nothing could be replaced; the message holds the report.
    """
    with _lock:
        flags = {"norms": norms, "mlp": mlp, "moe": moe, "rope": rope, "loss": loss}
        return _apply(model, flags)[0]


def report(
    model: nn.Module,
    *,
    norms: bool = True,
    mlp: bool = True,
    moe: bool = True,
    rope: bool = True,
    loss: bool = True,
) -> Report:
    """What `apply` with these arguments would do, without doing it.

    Raises TypeError where `model` is not a module.
    """
    with _lock:
        return _plan(model, {"norms": norms, "mlp": mlp, "moe": moe, "rope": rope, "loss": loss})[0]


def explain(model: nn.Module) -> None:
    """Print which canonical form every layer has, and how far it lies from it: the largest relative
    difference between the layer and the form on the probe's inputs. Of a layer without a form, the
    three next ones. Nothing is changed.

    Raises TypeError where `model` is not a module.
    """
    print(report(model).explain())


def revert(model: nn.Module) -> None:
    """Undo `apply` on `model` and all inside it: every attribute is what it was, by identity.

    A model that is not patched is left as it is. Raises TypeError where `model` is not a module.
    """
    _check(model)
    with _lock:
        _remove([patch for module in model.modules() for patch in patches(module)])


@contextmanager
def applied(
    model: nn.Module,
    *,
    norms: bool = True,
    mlp: bool = True,
    moe: bool = True,
    rope: bool = True,
    loss: bool = True,
) -> Iterator[Report]:
    """`apply` for the length of a `with` block. Patches that were there before it stay."""
    with _lock:
        result, installed = _apply(
            model, {"norms": norms, "mlp": mlp, "moe": moe, "rope": rope, "loss": loss}
        )
    try:
        yield result
    finally:
        with _lock:
            _remove(installed)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"liger_hf: model must be a torch.nn.Module, got {type(model).__name__}")


def _plan(model: nn.Module, flags: dict[str, bool]) -> tuple[Report, list[Patch]]:
    from .find import find

    _check(model)
    rows, planned = [], []
    for row, found in find(model, flags):
        rows.append(row)
        planned += found
    return Report(rows), planned


def _apply(model: nn.Module, flags: dict[str, bool]) -> tuple[Report, list[Patch]]:
    result, planned = _plan(model, flags)
    if not result.patched:
        raise NothingToReplace(f"liger_hf: nothing to replace in {type(model).__name__}\n{result}")
    installed: list[Patch] = []
    try:
        for patch in planned:
            installed.append(patch)
            patch.install()
    except BaseException:
        _remove(installed)
        raise
    return result, installed


def _remove(installed: list[Patch]) -> None:
    for patch in reversed(installed):
        patch.remove()
