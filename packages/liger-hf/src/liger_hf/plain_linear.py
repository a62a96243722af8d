"""Linear layers that an op may compute from their parameters, without calling them."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_plain_linear"]


def is_plain_linear(module: Any, input: Tensor) -> bool:
    """Whether module(input) is `torch.nn.functional.linear` of its weight and bias, and nothing
    notices that it was not called. Asked in every forward: adapters, quantisers and hooks come and
    go. torch.compile traces it.

    Refused are subclasses and what stands in place of a Linear, hooks, a forward of its own, and
    parameters that are not whole here or not until the backward: DTensors, the views that the first
    FSDP lends a module, and what ZeRO-3 gathers for one call.
    """
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if module._backward_hooks or module._backward_pre_hooks:
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
