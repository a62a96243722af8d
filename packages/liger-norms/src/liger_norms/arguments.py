"""Checks of arguments that all row norms share."""

import torch
from liger_core.kernels import specialize
from torch import Tensor

__all__ = ["check", "check_beside", "check_form", "eps_of"]


def eps_of(eps: float | None, dtype: torch.dtype) -> float:
    """`eps`, for None what torch takes: the epsilon of the dtype that the statistics have."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps if eps is None else eps


def check(
    name: str,
    x: Tensor,
    weights: dict[str, Tensor | None],
    eps: float,
    offset: float = 0.0,
    cast: str = "after",
) -> None:
    """Raise the errors that all row norms document; `weights` are [N]. A traced N is a constant
    from here on.
    """
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"{name}: x {tuple(x.shape)} must be [..., N], N > 0")
    specialize(x.shape[-1])
    check_beside(name, x, "x", x)
    for key, w in weights.items():
        if w is None:
            continue
        if not isinstance(w, Tensor):
            raise TypeError(f"{name}: {key} must be a tensor, not {type(w).__name__}")
        if w.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: x {tuple(x.shape)} and {key} {tuple(w.shape)} must be [..., N] and [N]"
            )
        check_beside(name, x, key, w)
    check_form(name, weights.get("weight") is not None, offset, cast)
    if eps < 0:
        raise ValueError(f"{name}: eps must not be negative, got {eps}")


def check_beside(name: str, x: Tensor, key: str, t: Tensor) -> None:
    """Raise where `t`, called `key`, has no dtype that goes with x, or another device."""
    if not t.is_floating_point():
        raise TypeError(f"{name}: {key} {t.dtype} must be floating point")
    if t.device != x.device:
        raise ValueError(f"{name}: x is on {x.device}, {key} on {t.device}")


def check_form(name: str, weight: bool, offset: float, cast: str) -> None:
    """Raise where `offset` and `cast` do not fit whether there is a weight."""
    if offset and not weight:
        raise ValueError(f"{name}: offset {offset} needs a weight")
    if cast not in ("after", "before", "rstd"):
        raise ValueError(f"{name}: cast must be 'after', 'before' or 'rstd', not {cast!r}")
    if cast == "rstd" and weight:
        raise ValueError(f"{name}: cast='rstd' takes no weight")
