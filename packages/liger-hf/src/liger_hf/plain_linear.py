"""Children that an op may stand for, without calling them: asked in every forward, since adapters,
quantisers and hooks come and go. torch.compile traces it.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .probe import settings

__all__ = ["Held", "are_held", "dtype_of", "held", "is_plain_linear"]


class Held(NamedTuple):
    """What a module held as an attribute; the rate of a dropout."""

    owner: nn.Module
    name: str
    value: Any
    rate: float


def held(module: nn.Module, besides: Collection[str | None]) -> tuple[Held, ...]:
    """Children and functions that `module` holds now, and those inside the children."""

    def walk(owner: nn.Module, names: Collection[str | None]) -> Iterator[Held]:
        values = owner._modules | {n: v for n, v in settings(owner).items() if callable(v)}
        for name, value in values.items():
            if value is not None and name not in names:
                yield Held(owner, name, value, _rate(value))
                if isinstance(value, nn.Module):
                    yield from walk(value, ())

    return tuple(walk(module, besides))


def are_held(seen: tuple[Held, ...]) -> bool:
    """Whether each is held still, with its rate, and no child notices that it was not called."""
    for owner, name, value, rate in seen:
        if getattr(owner, name, None) is not value or _rate(value) != rate:
            return False
        if isinstance(value, nn.Module) and _noticed(value):
            return False
    return True


def _rate(value: Any) -> float:
    return value.p if isinstance(value, nn.Dropout) else 0.0


def _noticed(module: nn.Module) -> bool:
    """Whether a call of it is more than its class's forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    hooks = hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or getattr(module.forward, "__func__", None) is not type(module).forward


def is_plain_linear(module: Any, input: Tensor) -> bool:
    """Whether module(input) is `torch.nn.functional.linear` of its weight and bias, and nothing
    notices that it was not called.

    Refused are subclasses and what stands in place of a Linear, hooks, a forward of its own, and
    parameters that are not whole here or not until the backward: DTensors, the views that the first
    FSDP lends a module, and what ZeRO-3 gathers for one call.
    """
    if type(module) is not nn.Linear or _noticed(module):
        return False
    cast = torch.is_autocast_enabled(input.device.type)
    return all(
        type(p) is nn.Parameter
        and not hasattr(p, "ds_id")
        and p.device == input.device
        and (cast or p.dtype == input.dtype)
        for p in (module.weight, module.bias)
        if p is not None
    )


def dtype_of(linear: Any) -> torch.dtype | None:
    """Of its weight; None where that is packed, or has another name."""
    weight = getattr(linear, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else None
