"""Losses of single responses that are labelled desirable or not: a number for each.

`scores` [...] are log pi(y) - log pi_ref(y), `desirable` [...] the labels, `baseline` is what a
score is compared with, a number or 0-d tensor that gets no gradient. It is known before the scores
are: z0 of KTO from other responses, delta of BCO from batches before. sigma is the logistic
function. A new loss is a function and a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import Formula

__all__ = ["UNPAIRED_LOSSES", "apo_zero_unpaired", "bco", "bco_delta", "kto", "kto_baseline"]


def kto(scores: Tensor, desirable: Tensor, baseline: float | Tensor, *, beta: float) -> Tensor:
    """1 - sigma(beta (s - z0)) where desirable, 1 - sigma(beta (z0 - s)) elsewhere.

    Source: KTO, arXiv:2402.01306, eq. 7.
    """
    z = beta * (scores - baseline)
    return torch.sigmoid(torch.where(desirable, -z, z))


def apo_zero_unpaired(scores: Tensor, desirable: Tensor, *, beta: float) -> Tensor:
    """`kto` with a baseline of 0: 1 - sigma(beta s) where desirable, sigma(beta s) elsewhere.

    Source: APO, arXiv:2408.06266, eq. 7.
    """
    return kto(scores, desirable, 0.0, beta=beta)


def bco(scores: Tensor, desirable: Tensor, baseline: float | Tensor, *, beta: float) -> Tensor:
    """-log sigma(beta s - delta) where desirable, -log sigma(delta - beta s) elsewhere; delta is a
    reward.

    Source: BCO, arXiv:2404.04656.
    """
    z = beta * scores - baseline
    return -F.logsigmoid(torch.where(desirable, z, -z))


def kto_baseline(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """z0 = max(0, mean of log pi(y') - log pi_ref(y')) over mismatched responses y', 0-d, without
    gradient. Over several ranks, take the mean of unclamped ones first.

    Source: KTO, arXiv:2402.01306, section 4.
    """
    return (log_probs - ref_log_probs).detach().mean().clamp(min=0.0)


def bco_delta(
    rewards: Tensor, desirable: Tensor, previous: float | Tensor = 0.0, *, momentum: float = 0.0
) -> Tensor:
    """The running delta of BCO: momentum * previous + (1 - momentum) * the mean of the mean rewards
    of either kind, 0-d, without gradient; `previous` where a kind is absent.

    Source: BCO, arXiv:2404.04656.
    """
    rewards, both = rewards.detach(), torch.stack([desirable, ~desirable]).to(rewards.dtype)
    now = ((both * rewards).sum(-1) / both.sum(-1)).mean()
    kept = torch.as_tensor(previous, dtype=now.dtype, device=now.device)
    return torch.where(now.isnan(), kept, momentum * kept + (1.0 - momentum) * now)


UNPAIRED_LOSSES = {
    "kto": Formula(kto),
    "apo_zero_unpaired": Formula(apo_zero_unpaired),
    "bco": Formula(bco),
}
