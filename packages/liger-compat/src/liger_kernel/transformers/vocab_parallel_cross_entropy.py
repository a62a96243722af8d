"""Cross entropy of logits whose classes several ranks share."""

from typing import Any

from torch import Tensor, nn

from .functional_losses import liger_vocab_parallel_cross_entropy

__all__ = ["LigerVocabParallelCrossEntropy"]


class LigerVocabParallelCrossEntropy(nn.Module):
    """`liger_vocab_parallel_cross_entropy` with fixed options, one loss for each token.

    Args:
        ignore_index: targets that do not count.
        label_smoothing: in [0, 1).
        reduction: "none".
        label_smoothing_formula: "pytorch" spreads its share over all classes, "megatron" over the
            others.
        label_smoothing_mode: "global", over all classes; "partition" over those of a rank, which is
            the same on one.

    Raises ValueError for other options.
    """

    def __init__(
        self, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "none",
        label_smoothing_formula: str = "pytorch", label_smoothing_mode: str = "global",
    ):  # fmt: skip
        super().__init__()
        if reduction != "none":
            raise ValueError(f"reduction must be none: {reduction!r}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1): {label_smoothing}")
        if label_smoothing_formula not in ("pytorch", "megatron"):
            raise ValueError(f"label_smoothing_formula is unknown: {label_smoothing_formula!r}")
        if label_smoothing_mode not in ("global", "partition"):
            raise ValueError(f"label_smoothing_mode is unknown: {label_smoothing_mode!r}")
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.reduction, self.label_smoothing_formula = reduction, label_smoothing_formula
        self.label_smoothing_mode = label_smoothing_mode

    def forward(
        self, vocab_parallel_logits: Tensor, target: Tensor, tp_group: Any = None
    ) -> Tensor:
        """Logits [S, B, V], or this rank's shard of them; targets [S, B] of all classes."""
        if vocab_parallel_logits.dim() != 3:
            shape = tuple(vocab_parallel_logits.shape)
            raise ValueError(f"vocab_parallel_logits must be [S, B, V]: {shape}")
        return liger_vocab_parallel_cross_entropy(
            vocab_parallel_logits, target, tp_group, self.ignore_index, self.label_smoothing,
            self.label_smoothing_formula, self.label_smoothing_mode,
        )  # fmt: skip
