"""Checks of arguments that all row norms share."""

from torch import Tensor

__all__ = ["check"]


def check(
    name: str,
    x: Tensor,
    weights: dict[str, Tensor | None],
    eps: float,
    offset: float = 0.0,
    cast: str = "after",
) -> None:
    """Raise the errors that all row norms document; `weights` are [N]."""
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"{name}: x {tuple(x.shape)} must be [..., N], N > 0")
    if not x.is_floating_point():
        raise TypeError(f"{name}: x {x.dtype} must be floating point")
    for key, w in weights.items():
        if w is None:
            continue
        if w.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: x {tuple(x.shape)} and {key} {tuple(w.shape)} must be [..., N] and [N]"
            )
        if not w.is_floating_point():
            raise TypeError(f"{name}: {key} {w.dtype} must be floating point")
        if w.device != x.device:
            raise ValueError(f"{name}: x is on {x.device}, {key} on {w.device}")
    if offset and weights.get("weight") is None:
        raise ValueError(f"{name}: offset {offset} needs a weight")
    if cast not in ("after", "before", "rstd"):
        raise ValueError(f"{name}: cast must be 'after', 'before' or 'rstd', not {cast!r}")
    if cast == "rstd" and weights.get("weight") is not None:
        raise ValueError(f"{name}: cast='rstd' takes no weight")
    if eps < 0:
        raise ValueError(f"{name}: eps must not be negative, got {eps}")
