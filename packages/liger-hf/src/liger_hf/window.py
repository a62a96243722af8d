"""When a head may leave its logits out: while the patched forward of its model runs.

Whoever else calls the head, or a model inside the patched one, gets real logits. The window is open
in one thread alone. torch.compile traces no thread-locals: compiled code looks at an attribute that
all threads share, and that is reset whenever a window closes.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .replaced import Patch

__all__ = ["Window", "deferring", "observed", "opened", "plain_heads"]

# code that gathers sharded parameters, in whose presence a head may be called twice
SHARDING = ("torch.distributed.", "deepspeed.")


class Window(NamedTuple):
    """`entry`: what the model calls for its logits, the head or PEFT's wrapper of copies of it.
    `left_out`: whoever called the model deals with deferred logits, in evaluation too.
    """

    entry: Any
    left_out: bool


class _Thread(threading.local):
    window: Window | None = None


class _Compiled:
    def __init__(self) -> None:
        # there from the start: a guard that it is not would fail in the second call
        self.window: Window | None = None


_thread, _compiled = _Thread(), _Compiled()


@contextmanager
def opened(entry: Any, left_out: bool = False) -> Iterator[None]:
    """The head that `entry` is, or holds, may defer its logits inside the `with` block."""
    compiling = torch.compiler.is_compiling()
    before = _compiled.window if compiling else _thread.window
    # one object for both: read back from the shared one, it might be another thread's
    _compiled.window = window = Window(entry, left_out)
    if not compiling:
        _thread.window = window
    try:
        yield
    finally:
        # not what another thread may have put there
        _compiled.window = before
        if not compiling:
            _thread.window = before


def deferring(patch: Patch) -> Window | None:
    """The window in which the head of `patch` is called, if its logits may be deferred there."""
    head = patch.module
    window = _compiled.window if torch.compiler.is_compiling() else _thread.window
    if (
        window is None
        or not (head.training or window.left_out)
        or not any(plain is head for plain in plain_heads(window.entry))
        or observed(head)
        or observed(window.entry)
        or _wrapped(head, patch)
        or _wrapped(window.entry, patch)
        or not _stays(head)
    ):
        return None
    return window


def plain_heads(head: nn.Module) -> list[Any]:
    """The head, or the copies of it that PEFT trains instead (`modules_to_save`)."""
    copies = getattr(head, "modules_to_save", None)
    original = getattr(head, "original_module", None)
    if isinstance(copies, nn.ModuleDict) and isinstance(original, nn.Module):
        return [original, *copies.values()]
    return [head]


def observed(module: nn.Module) -> str:
    """Why a forward may not be called twice, nor return something else than a tensor; or empty."""
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        if not (getattr(hook, "__module__", None) or "").startswith(SHARDING):
            return "has forward hooks"
        # of FSDP2: it counts the calls of all that it gathers at once, and expects one of each
        state = getattr(inspect.unwrap(hook, stop=inspect.ismethod), "__self__", None)
        if len(getattr(state, "_modules", ())) > 1:
            return "FSDP gathers it together with other modules"
    return ""


def _wrapped(module: nn.Module, patch: Patch) -> bool:
    """Whether another library has replaced the forward, as accelerate does for weights that are on
    the device only while it runs.
    """
    forward = vars(module).get("forward")
    # `getattr(forward, "__self__", None)` is None in what torch 2.11 compiles
    ours = isinstance(forward, MethodType) and forward.__self__ is patch
    return forward is not None and not ours


def _stays(head: Any) -> bool:
    """Whether the weight is the head's own and stays. Not so where it is parametrised, as PEFT does
    for `target_parameters`, nor where torch.func.functional_call lends another. The views of FSDP1
    are attributes beside the parameters.
    """
    if "weight" in vars(head):
        return type(head.weight) is Tensor
    return type(head._parameters.get("weight")) is nn.Parameter
