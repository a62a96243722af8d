"""What autograd Functions share."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable as _torch_once_differentiable

__all__ = ["once_differentiable"]


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's decorator of the same name, whose cost only a pass with `create_graph` has."""
    checked = _torch_once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        return (checked if torch.is_grad_enabled() else backward)(ctx, *grads)

    return wrapper
