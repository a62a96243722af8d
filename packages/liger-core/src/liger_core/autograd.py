"""What backward functions share."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function as torch_function

__all__ = ["once_differentiable"]


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As torch's decorator: differentiating what `backward` returns raises. Here it does also for a
    loss whose incoming gradient, a one, is no part of a graph: torch would return a gradient
    without a graph, and a penalty on it would silently go missing.
    """
    once = torch_function.once_differentiable(backward)

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> Any:
        # only create_graph=True leaves gradients on
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = tuple(
                g.detach().requires_grad_() if g is not None and g.is_floating_point() else g
                for g in grads
            )
        return once(ctx, *grads)

    return checked
