"""Log-probabilities of responses, from those of their tokens: sum_t a_t log pi(y_t)."""

from collections.abc import Callable

from torch import Tensor

from .linear import per_token

__all__ = ["pairs", "ref_of_responses", "response_weights"]


def response_weights(mask: Tensor, averaged: bool, ld_alpha: float | None = None) -> Tensor:
    """The weight a of each token, in the shape of the mask [..., T].

    `averaged`: 1 / length. `ld_alpha`, for pairs [..., 2, T]: a factor of the tokens beyond the
    length of the shorter response, LD-DPO, arXiv:2409.06411.
    """
    weights, lengths = mask.float(), mask.sum(-1, keepdim=True)
    if ld_alpha is not None:
        shared = lengths.amin(-2, keepdim=True)
        weights = weights.where(mask.cumsum(-1) <= shared, ld_alpha * weights)
    return weights / lengths.clamp(min=1) if averaged else weights


def pairs(t: Tensor) -> Tensor:
    """[2 N, ...], chosen ones first, as [N, 2, ...]."""
    return t.unflatten(0, (2, len(t) // 2)).transpose(0, 1)


def ref_of_responses(
    name: str, ref: Tensor | None, counts: Tensor, weights: Tensor,
    arrange: Callable[[Tensor], Tensor] = lambda t: t,
) -> Tensor | None:  # fmt: skip
    """Those of the reference, given for tokens [B, T] or responses [B], arranged as the weights."""
    if ref is None:
        return None
    if ref.shape == counts.shape[:1]:
        return arrange(ref.detach())
    found = per_token(name, counts, ref_log_probs=ref)["ref_log_probs"]
    return (arrange(found) * weights).sum(-1)
