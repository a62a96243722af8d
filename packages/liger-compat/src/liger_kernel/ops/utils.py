"""Helpers for those who write kernels and autograd Functions of their own."""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from ..utils import infer_device

__all__ = [
    "amp_custom_bwd", "amp_custom_fwd", "calculate_settings", "compare_version", "device_context",
    "ensure_contiguous", "get_amp_custom_fwd_bwd", "is_hip",
]  # fmt: skip

MAX_COLUMNS = 65536


def is_hip() -> bool:
    return torch.version.hip is not None


@contextmanager
def device_context(device: Any) -> Iterator[None]:
    """Makes a device the current one."""
    kind = torch.device(device).type
    backend: Any = getattr(torch, kind, None)
    if kind == "cpu" or not hasattr(backend, "device"):
        yield
        return
    with backend.device(device):
        yield


def ensure_contiguous(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates fn(ctx, *args, **kwargs): tensors come contiguous."""

    @functools.wraps(fn)
    def wrapper(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        def contiguous(x: Any) -> Any:
            return x.contiguous() if isinstance(x, Tensor) else x

        named = {name: contiguous(x) for name, x in kwargs.items()}
        return fn(ctx, *map(contiguous, args), **named)

    return wrapper


def calculate_settings(n: int) -> tuple[int, int]:
    """(columns of a block, warps) for a row of n in one block; RuntimeError above 65,536."""
    block = 1 << max(n - 1, 0).bit_length()
    if block > MAX_COLUMNS:
        raise RuntimeError(f"a row of {n} is longer than a block of {MAX_COLUMNS}")
    if block >= 32768:
        return block, 16 if is_hip() else 32
    return block, 16 if block >= 8192 else 8 if block >= 2048 else 4


def compare_version(package: str, operator: Callable[[Any, Any], bool], target: str) -> bool:
    """operator(version of the package, target); False where it is not installed."""
    try:
        found = importlib.import_module(package).__version__
    except ImportError:
        return False
    return operator(TorchVersion(found), target)


def get_amp_custom_fwd_bwd() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Decorators of the two methods of an autograd Function, for the device at hand."""
    device = infer_device()
    return (
        functools.partial(torch.amp.custom_fwd, device_type=device),
        functools.partial(torch.amp.custom_bwd, device_type=device),
    )


amp_custom_fwd, amp_custom_bwd = get_amp_custom_fwd_bwd()
