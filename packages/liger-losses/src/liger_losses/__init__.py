"""Losses over logits, and fused with the linear head before them."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .cross_entropy import CrossEntropyLoss as CrossEntropyLoss, cross_entropy as cross_entropy
    from .linear_cross_entropy import (
        LinearCrossEntropyLoss as LinearCrossEntropyLoss,
        linear_cross_entropy as linear_cross_entropy,
    )
    from .linear_log_probs import linear_log_probs as linear_log_probs
    from .log_probs import LogProbs as LogProbs, log_probs as log_probs

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {
        "cross_entropy": ("CrossEntropyLoss", "cross_entropy"),
        "linear_cross_entropy": ("LinearCrossEntropyLoss", "linear_cross_entropy"),
        "linear_log_probs": ("linear_log_probs",),
        "log_probs": ("LogProbs", "log_probs"),
    },
)
