"""How the losses of tokens become one number: as a weight for each token, so that

    loss = sum over sequences i and tokens t of weights_it * loss_it

T_i tokens of B sequences count. Weights depend on the mask alone, thus a weighted loss is a sum
over tokens and needs no other token of the batch.

    grpo      1 / (B T_i)       mean over the tokens of a sequence, mean over sequences
    luspo     1 / B             sum over tokens, mean over sequences
    bnpo      1 / sum_i T_i     mean over all tokens
    dapo      1 / sum_i T_i     the same, meant to get the count of all ranks as `normalizer`
    dr_grpo   1 / (B L)         sum over a budget of L tokens for each sequence
    constant  1 / normalizer
"""

from typing import NamedTuple

from torch import Tensor

from .options import choose

__all__ = ["REDUCTIONS", "Reduction", "token_weights"]


class Reduction(NamedTuple):
    """Whether each sequence is divided by its own length, and what the sum is divided by."""

    by_length: bool
    divisor: str


REDUCTIONS = {
    "grpo": Reduction(True, "sequences"),
    "luspo": Reduction(False, "sequences"),
    "bnpo": Reduction(False, "tokens"),
    "dapo": Reduction(False, "tokens"),
    "dr_grpo": Reduction(False, "budget"),
    "constant": Reduction(False, "given"),
}


def token_weights(
    mask: Tensor, reduction: str, *, normalizer: float | Tensor | None = None,
    max_completion_length: int | None = None,
) -> Tensor:  # fmt: skip
    """The weight of each token, [B, T]; 0 for those that do not count.

    Args:
        mask: tokens that count, [B, T].
        reduction: a name of the table above.
        normalizer: what the sum is divided by instead of B, sum_i T_i or B L: a number or a 0-d
            tensor. Under data parallelism, whose ranks average gradients, that count over all ranks
            and accumulated batches, divided by the number of ranks. No collective runs here.
        max_completion_length: L of dr_grpo, by default T.

    Source: GRPO arXiv:2402.03300; LUSPO arXiv:2602.05261; DAPO arXiv:2503.14476; Dr. GRPO
    arXiv:2503.20783, whose constant L is per sequence, as in TRL.
    """
    by_length, divisor = choose("token_weights", "reduction", REDUCTIONS, reduction)
    B, T = mask.shape
    weights = (mask != 0).float()
    if by_length:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
    if isinstance(normalizer, Tensor) and normalizer.numel() != 1:
        raise ValueError(f"token_weights: normalizer {tuple(normalizer.shape)} must be one number")
    if normalizer is not None:
        return weights / (normalizer.reshape(()) if isinstance(normalizer, Tensor) else normalizer)
    if divisor == "given":
        raise ValueError(f"token_weights: reduction {reduction!r} needs a normalizer")
    if divisor == "tokens":
        return weights / weights.sum().clamp(min=1.0)
    budget = T if max_completion_length is None else max_completion_length
    return weights / max(B * budget if divisor == "budget" else B, 1)
