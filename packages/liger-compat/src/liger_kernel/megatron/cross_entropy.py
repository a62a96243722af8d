"""Vocabulary-parallel cross entropy with Megatron's defaults."""

from ..transformers.vocab_parallel_cross_entropy import LigerVocabParallelCrossEntropy

__all__ = ["LigerMegatronCrossEntropy"]


class LigerMegatronCrossEntropy(LigerVocabParallelCrossEntropy):
    """`LigerVocabParallelCrossEntropy` whose smoothing is Megatron's."""

    def __init__(
        self, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "none",
        label_smoothing_formula: str = "megatron", label_smoothing_mode: str = "partition",
    ):  # fmt: skip
        super().__init__(
            ignore_index, label_smoothing, reduction, label_smoothing_formula,
            label_smoothing_mode,
        )  # fmt: skip
