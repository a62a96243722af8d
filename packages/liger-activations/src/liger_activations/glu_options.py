"""What gated linear units check in their arguments and make of them."""

from liger_core.kernels import specialize
from torch import Tensor

from .pointwise import ACTIVATIONS

__all__ = ["Options", "check_options", "glu_options"]

# layout, activation, clamp and, None where without effect, alpha, limit, up_offset
Options = tuple[str, str, str, float | None, float | None, float | None]
CHOICES = {
    "activation": ACTIVATIONS,
    "layout": ("concatenated", "up_first", "interleaved"),
    "clamp": ("before", "after"),
}


def check_options(
    name: str, activation: str, layout: str = "concatenated", alpha: float = 1.0,
    limit: float | None = None, up_offset: float = 0.0, clamp: str = "before",
) -> None:  # fmt: skip
    """Raises where options of `name` are unknown or do not fit each other."""
    for what, value in (("activation", activation), ("layout", layout), ("clamp", clamp)):
        if value not in CHOICES[what]:
            known = ", ".join(CHOICES[what])
            raise ValueError(f"{name}: {what} must be one of {known}, not {value!r}")
    if alpha != 1.0 and activation != "silu":
        raise ValueError(f"{name}: alpha {alpha} is for the silu, not for {activation}")
    if limit is not None and not limit > 0:
        raise ValueError(f"{name}: limit must be positive, got {limit}")


def glu_options(
    name: str, gate: Tensor, up: Tensor | None, activation: str, layout: str, alpha: float,
    limit: float | None, up_offset: float, clamp: str,
) -> Options:  # fmt: skip
    """Raises where arguments of `name` do not fit each other. A traced width of two halves is a
    constant from here on: a half of one column is none to a symbol.
    """
    check_options(name, activation, layout, alpha, limit, up_offset, clamp)
    if up is not None and layout != "concatenated":
        raise ValueError(f"{name}: layout {layout} is for gate and up in one tensor")
    if up is None and (gate.ndim < 1 or gate.shape[-1] % 2):
        raise ValueError(f"{name}: {tuple(gate.shape)} without up must have an even last dimension")
    if up is None:
        specialize(gate.shape[-1])
    up = gate if up is None else up
    if gate.shape != up.shape:
        shapes = f"gate {tuple(gate.shape)}, up {tuple(up.shape)}"
        raise ValueError(f"{name}: {shapes} must have one shape")
    if gate.device != up.device:
        raise ValueError(f"{name}: gate is on {gate.device}, up on {up.device}")
    if not (gate.is_floating_point() and up.is_floating_point()):
        raise TypeError(f"{name}: gate {gate.dtype}, up {up.dtype} must be floating point")
    return (
        layout, activation, clamp, None if alpha == 1.0 else float(alpha),
        None if limit is None else float(limit), None if up_offset == 0.0 else float(up_offset),
    )  # fmt: skip
