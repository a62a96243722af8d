"""The losses of transformers on Liger's cross entropy of logits."""

from typing import Any

from torch import Tensor

from .functional_losses import liger_cross_entropy

__all__ = ["liger_fixed_cross_entropy", "use_liger_cross_entropy"]


def liger_fixed_cross_entropy(
    source: Tensor, target: Tensor, num_items_in_batch: Any = None, ignore_index: int = -100,
    **kwargs: Any,
) -> Tensor:  # fmt: skip
    """The sum over tokens divided by `num_items_in_batch`; without it, their mean.

    As in transformers, further keywords, those of the attention among them, do nothing.
    """
    if num_items_in_batch is None:
        return liger_cross_entropy(source, target, ignore_index=ignore_index)
    loss = liger_cross_entropy(source, target, ignore_index=ignore_index, reduction="sum")
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss / num_items_in_batch


def use_liger_cross_entropy() -> None:
    """For the process, as the flag `cross_entropy` always was; only in transformers' losses, where
    it was in `torch.nn.functional` too.
    """
    from transformers.loss import loss_utils

    loss_utils.fixed_cross_entropy = liger_fixed_cross_entropy
