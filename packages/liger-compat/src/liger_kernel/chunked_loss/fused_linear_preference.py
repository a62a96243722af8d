"""What the losses of pairs return: (loss, metrics).

Metrics are log-probabilities of the chosen responses [N] and of the rejected [N], their mean
logits, the negative log-likelihood, their rewards [N] and [N], and what else a loss has.
"""

from typing import Any

import torch
from liger_posttrain.linear import mean_where
from liger_posttrain.linear_preference import LinearPreferenceLoss
from torch import Tensor

from ..missing import missing_class

__all__ = ["EachPair", "LigerFusedLinearPreferenceBase", "outputs"]

LigerFusedLinearPreferenceBase = missing_class("LigerFusedLinearPreferenceBase", "liger-posttrain")


class EachPair(LinearPreferenceLoss):
    """Hands out what is logged of each pair, where the loss itself gives means."""

    def metrics(self, aux: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        found = {name: aux[name] for name in ("logps", "rewards")}
        for i, side in enumerate(("chosen", "rejected")):
            found[side] = mean_where(aux["logits"][:, i], mask[:, i])
        return found | {"nll": aux["nll"].sum()} if "nll" in aux else found


def outputs(
    loss: LinearPreferenceLoss, *tensors: Tensor, more: tuple[str, ...] = (), **options: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of the loss called with input, weight, target; `more` are metrics behind the common ones."""
    total, found = loss(*tensors, **options)
    logps, rewards = found["logps"].unbind(1), found["rewards"].unbind(1)
    nll = found.get("nll", torch.zeros_like(total))
    common = (*logps, found["chosen"], found["rejected"], nll, *rewards)
    return total, (*common, *(found[name] for name in more))
