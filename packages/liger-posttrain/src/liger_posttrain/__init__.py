"""Preference, policy and distillation losses of a linear head, as functions of its statistics."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .linear_grpo import LinearGRPOLoss as LinearGRPOLoss, linear_grpo_loss as linear_grpo_loss

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {
        "linear_grpo": ("LinearGRPOLoss", "linear_grpo_loss"),
    },
)
