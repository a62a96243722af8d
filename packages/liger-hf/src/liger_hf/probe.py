"""Running a module's own forward on a small input, beside a candidate replacement."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .replaced import RECORD

__all__ = [
    "Same",
    "bare",
    "difference",
    "fingerprint",
    "inputs",
    "is_linear",
    "measured",
    "normal",
    "probing",
    "reseed",
    "settings",
    "stand_in",
]

# attributes of a module that say nothing of what its own code computes
OF_OTHERS = {*vars(nn.Module()), "forward", RECORD, "_hf_hook", "_old_forward"}

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# put around the forward of a class: by others and by us, or compiled
AROUND = ("forward", "_compiled_call_impl")


@contextmanager
def probing() -> Iterator[None]:
    """Leaves no trace: no gradients, the CPU, full precision, the random state put back."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        # whose tensors have no gradients even where they are asked for
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        yield


def reseed(seed: int = 0) -> None:
    """Every probe sees the same numbers. The generators of other devices are not touched."""
    torch.default_generator.manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32, device="cpu").to(dtype)


def stand_in(module: nn.Module, replaced: dict[str, Any], training: bool = True) -> nn.Module:
    """A second instance with the attributes of `module`, some parameters or children replaced, and
    second instances of the other children, in training or not as it is. None has hooks, nor a
    forward that was put on the instance: those are for the layer's own inputs.

    The values of the real parameters are never read: they may be large, sharded, quantised or on
    the meta device.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("a ScriptModule has no second instance")
    # past the constructor, and past the __new__ that FSDP2 gives to a sharded module's class
    other = object.__new__(type(module))
    other.__dict__ = {k: v for k, v in vars(module).items() if k not in AROUND}
    for name in HOOKS:
        other.__dict__[name] = OrderedDict()
    for store in ("_parameters", "_buffers", "_modules"):
        other.__dict__[store] = dict(vars(module)[store])
    for name, value in replaced.items():
        other.__dict__["_modules" if isinstance(value, nn.Module) else "_parameters"][name] = value
    for name, child in module._modules.items():
        if child is not None and name not in replaced:
            other.__dict__["_modules"][name] = stand_in(child, {}, training)
    other.training = training
    return other


def bare(module: nn.Module, replaced: dict[str, Any], training: bool = True) -> nn.Module:
    """A `stand_in` without the parameters that are not replaced: reading one is an error."""
    other = stand_in(module, {}, training)
    other.__dict__["_parameters"] = dict.fromkeys(module._parameters)
    return stand_in(other, replaced, training)


def difference(original: object, replacement: object) -> float:
    """|a - b| / |a| in the 2-norm; infinite where shape or dtype differ, or for NaN."""
    if (
        isinstance(original, tuple)
        and isinstance(replacement, tuple)
        and len(original) == len(replacement)
    ):
        return max(map(difference, original, replacement), default=0.0)
    if not isinstance(original, Tensor) or not isinstance(replacement, Tensor):
        return float("inf")
    if original.shape != replacement.shape or original.dtype != replacement.dtype:
        return float("inf")
    a, b = original.double(), replacement.double()
    gap = ((a - b).norm() / a.norm().clamp_min(1e-30)).item()
    return gap if gap == gap else float("inf")


def measured(gap: float) -> str:
    return (
        f"relative difference {gap:.1e}"
        if gap < float("inf")
        else "which fails on the probe or gives another shape or dtype"
    )


def inputs(forward: Callable[..., Any]) -> dict[str, bool]:
    """Names of the inputs that a method takes beside self -> whether it needs them. Those of a
    variable number are left out: a replacement passes calls that have any on to the original.
    """
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return {
        p.name: p.default is p.empty
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def is_linear(module: nn.Module) -> bool:
    """A projection: nn.Linear, and whatever an adapter or a quantiser puts in its place."""
    return all(
        isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")
    )


class Same:
    """Equal to another of the same object, which it keeps alive: an id of a dead one is given to
    the next.
    """

    def __init__(self, value: object):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def settings(module: nn.Module) -> dict[str, Any]:
    """The attributes that its code gave it, beside parameters, buffers and children."""
    return {name: value for name, value in vars(module).items() if name not in OF_OTHERS}


def fingerprint(module: nn.Module) -> tuple[object, ...]:
    """Equal for modules that compute the same up to the values of their parameters: of functions
    and other objects among their attributes, only the same one is equal.
    """
    return (
        type(module),
        _frozen(settings(module)),
        tuple((name, p.shape, p.dtype) for name, p in module.named_parameters(recurse=False)),
        tuple((name, fingerprint(child)) for name, child in module.named_children()),
    )


def _frozen(value: object) -> object:
    """By value what has no identity of its own, also of lists and dicts as they are now."""
    if isinstance(value, dict):
        return type(value), tuple((_frozen(k), _frozen(v)) for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_frozen, value))
    if type(value) is functools.partial:
        return _frozen((value.func, value.args, value.keywords))
    if isinstance(value, (bool, int, float, str, type(None), torch.device)):
        return type(value), repr(value)
    return Same(value)
