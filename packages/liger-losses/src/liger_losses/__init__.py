"""Losses over logits, and fused with the linear head before them."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .cross_entropy import (
        CrossEntropyLoss as CrossEntropyLoss,
        cross_entropy as cross_entropy,
        cross_entropy_with_metrics as cross_entropy_with_metrics,
    )
    from .divergence import (
        JSDLoss as JSDLoss,
        KLDivLoss as KLDivLoss,
        TVDLoss as TVDLoss,
        jsd as jsd,
        kl_div as kl_div,
        tvd as tvd,
    )
    from .linear_cross_entropy import (
        LinearCrossEntropyLoss as LinearCrossEntropyLoss,
        linear_cross_entropy as linear_cross_entropy,
        linear_cross_entropy_with_metrics as linear_cross_entropy_with_metrics,
    )
    from .linear_divergence import (
        linear_cosine as linear_cosine,
        linear_jsd as linear_jsd,
        linear_kl_div as linear_kl_div,
        linear_tvd as linear_tvd,
    )
    from .linear_log_probs import linear_log_probs as linear_log_probs
    from .linear_loss import linear_loss as linear_loss
    from .log_probs import LogProbs as LogProbs, log_probs as log_probs
    from .tokens import CrossEntropyMetrics as CrossEntropyMetrics
    from .vocab_parallel_cross_entropy import (
        VocabParallelCrossEntropyLoss as VocabParallelCrossEntropyLoss,
        vocab_parallel_cross_entropy as vocab_parallel_cross_entropy,
    )
    from .vocab_parallel_linear_cross_entropy import (
        vocab_parallel_linear_cross_entropy as vocab_parallel_linear_cross_entropy,
    )

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {
        "cross_entropy": ("CrossEntropyLoss", "cross_entropy", "cross_entropy_with_metrics"),
        "divergence": ("JSDLoss", "KLDivLoss", "TVDLoss", "jsd", "kl_div", "tvd"),
        "linear_cross_entropy": (
            "LinearCrossEntropyLoss", "linear_cross_entropy", "linear_cross_entropy_with_metrics",
        ),
        "linear_divergence": ("linear_cosine", "linear_jsd", "linear_kl_div", "linear_tvd"),
        "linear_log_probs": ("linear_log_probs",),
        "linear_loss": ("linear_loss",),
        "log_probs": ("LogProbs", "log_probs"),
        "tokens": ("CrossEntropyMetrics",),
        "vocab_parallel_cross_entropy": (
            "VocabParallelCrossEntropyLoss", "vocab_parallel_cross_entropy",
        ),
        "vocab_parallel_linear_cross_entropy": ("vocab_parallel_linear_cross_entropy",),
    },
)  # fmt: skip
