"""What autograd functions share."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function as torch_function

__all__ = ["autocast", "autocast_dtype", "once_differentiable"]


def autocast_dtype(device: str) -> torch.dtype | None:
    """That of linear layers on a type of device, None without autocast; meta tensors know none."""
    # by name: torch 2.11 cannot trace `is_autocast_available`
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def autocast(*tensors: Any) -> list[Any]:
    """What a linear layer would compute with: under autocast, copies in its dtype."""
    dtype = autocast_dtype(tensors[0].device.type)
    if dtype is None:
        return list(tensors)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    ]


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As torch's decorator: differentiating what `backward` returns raises. Here it does also for a
    loss whose incoming gradient, a one, is no part of a graph: torch would return a gradient
    without a graph, and a penalty on it would silently go missing. Only a pass with `create_graph`
    bears the cost.
    """
    once = torch_function.once_differentiable(backward)

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> Any:
        # only create_graph=True leaves gradients on
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        if not torch.compiler.is_compiling():
            grads = tuple(
                g.detach().requires_grad_() if g is not None and g.is_floating_point() else g
                for g in grads
            )
        return once(ctx, *grads)

    return checked
