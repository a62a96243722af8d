"""What the constructors of several modules have in common."""

import torch
from torch import nn

__all__ = ["check_activation", "learned"]


def learned(size: int, init_fn: str) -> nn.Parameter:
    """A weight of ones or zeros, as `init_fn` says; AssertionError for anything else."""
    assert init_fn in ("ones", "zeros"), f"init_fn must be ones or zeros: {init_fn}"
    return nn.Parameter(torch.ones(size) if init_fn == "ones" else torch.zeros(size))


def check_activation(activation: str | None, allowed: tuple[str, ...]) -> None:
    """ValueError where a configuration asks for another activation."""
    if activation not in allowed:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(allowed)}")
