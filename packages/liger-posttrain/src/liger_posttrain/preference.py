"""Losses of pairs: a number for each pair from what the policy makes of its two responses.

`chosen` and `rejected` are [..., N], and what they mean says the row of a loss in `PAIR_LOSSES`:

    "scores"     f(log pi(y) - log pi_ref(y)) of a response, f as in `f_divergence`, by default the
                 identity; without a reference log pi(y)
    "averages"   those divided by the number of tokens of the response
    "log_probs"  log pi(y), whatever the reference
    "margins"    log pi(chosen) - log pi(rejected) as chosen, the reference's as rejected

sigma is the logistic function, d = chosen - rejected. A new loss is a function and a row.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .f_divergence import LARGEST
from .options import Formula

__all__ = [
    "PAIR_LOSSES", "PairLoss", "aot", "apo_down", "apo_zero", "bco_pair", "discopop", "exo_pair",
    "hinge", "ipo", "log_odds", "nca_pair", "odds_ratio", "robust", "sigmoid", "simpo", "sppo_hard",
]  # fmt: skip


def sigmoid(
    chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """-(1 - e) log sigma(beta d) - e log sigma(-beta d): DPO, or conservative DPO where a share e
    of the labels is thought to be wrong. (TRL's "sigmoid" leaves label_smoothing unused.)

    Source: DPO, arXiv:2305.18290, eq. 7; e: Mitchell 2023, https://ericmitchell.ai/cdpo.pdf
    """
    z = beta * (chosen - rejected)
    return -(1.0 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def hinge(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta d).

    Source: SLiC, arXiv:2305.10425, with DPO's rewards as in RSO, arXiv:2309.06657.
    """
    return torch.relu(1.0 - beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """(d - 1 / (2 beta))^2, of averages: the paper's sums would make it grow with the length, and
    its authors used averages, as TRL notes.

    Source: IPO, arXiv:2310.12036, eq. 17.
    """
    return (chosen - rejected - 0.5 / beta).square()


def exo_pair(
    chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 1e-3
) -> Tensor:
    """KL((sigma(beta d), sigma(-beta d)) || (1 - e, e)), 0 < e < 1.

    Source: EXO, arXiv:2402.00856, eq. 16.
    """
    if not 0.0 < label_smoothing < 1.0:
        raise ValueError(f"exo_pair: label_smoothing must be in (0, 1), got {label_smoothing}")
    z = beta * (chosen - rejected)
    won = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-label_smoothing))
    return won + torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(label_smoothing))


def nca_pair(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """-log sigma(beta c) - log sigma(-beta c) / 2 - log sigma(-beta r) / 2.

    Source: NCA, arXiv:2402.05369.
    """
    chosen, rejected = beta * chosen, beta * rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def robust(
    chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """(-(1 - e) log sigma(beta d) + e log sigma(-beta d)) / (1 - 2 e), 0 <= e < 1/2: unbiased where
    a share e of the labels is wrong.

    Source: robust DPO, arXiv:2403.00409.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"robust: label_smoothing must be in [0, 0.5), got {label_smoothing}")
    z = beta * (chosen - rejected)
    clean, flipped = (1.0 - label_smoothing) * F.logsigmoid(z), label_smoothing * F.logsigmoid(-z)
    return (flipped - clean) / (1.0 - 2.0 * label_smoothing)


def bco_pair(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """-log sigma(beta c) - log sigma(-beta r): a classifier of each response by itself.

    Source: BCO, arXiv:2404.04656, with a shift of 0.
    """
    return -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)


def sppo_hard(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2: win probabilities of 1 and 0.

    Source: SPPO, arXiv:2405.00675, eq. 4.7.
    """
    return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()


def aot(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """`sigmoid` of both sides sorted over the batch, the last dimension: stochastic dominance of
    one distribution over the other. Of margins: "aot"; of scores: "aot_unpaired".

    Source: AOT, arXiv:2406.05882.
    """
    chosen, rejected = chosen.sort(-1).values, rejected.sort(-1).values
    return sigmoid(chosen, rejected, beta=beta, label_smoothing=label_smoothing)


def apo_zero(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """1 - sigma(beta c) + sigma(beta r): chosen responses become more likely, rejected ones less.

    Source: APO, arXiv:2408.06266, eq. 7.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """sigma(beta c) + 1 - sigma(beta d): both become less likely, rejected ones more so.

    Source: APO, arXiv:2408.06266, eq. 8.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop(
    chosen: Tensor, rejected: Tensor, *, beta: float, discopop_tau: float = 0.05
) -> Tensor:
    """(1 - m) (-log sigma(beta d)) + m exp(-beta d), m = sigma(beta d / tau).

    Source: DiscoPOP, arXiv:2406.08414, eq. 5.
    """
    z = beta * (chosen - rejected)
    m = torch.sigmoid(z / discopop_tau)
    return -F.logsigmoid(z) * (1.0 - m) + (-z).clamp(max=LARGEST).exp() * m


def simpo(
    chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float = 0.5,
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """`sigmoid` with a target margin: of beta d - gamma.

    Source: SimPO, arXiv:2405.14734, eq. 6.
    """
    return sigmoid(chosen - gamma / beta, rejected, beta=beta, label_smoothing=label_smoothing)


def log_odds(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log(p / (1 - p)) of chosen minus that of rejected, from log p < 0."""
    return (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))


def odds_ratio(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """-beta log sigma(log_odds(chosen, rejected)), of average log-probabilities.

    Source: ORPO, arXiv:2403.07691, eq. 7.
    """
    return -beta * F.logsigmoid(log_odds(chosen, rejected))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)), x < 0, from what is accurate on either side of -log 2. A response without
    tokens has x = 0 and counts as nearly certain: it must not make a NaN of others' gradients.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return torch.where(x > -0.6931, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


class PairLoss(NamedTuple):
    """A formula of two numbers of a pair, what they are, whether it compares pairs with each
    other, and whether it is defined for other f-divergences: those that see d alone, in which a
    term of the prompt cancels.
    """

    formula: Formula
    of: str = "scores"
    whole_batch: bool = False
    any_divergence: bool = True


PAIR_LOSSES = {
    "sigmoid": PairLoss(Formula(sigmoid)),
    "hinge": PairLoss(Formula(hinge)),
    "ipo": PairLoss(Formula(ipo), "averages"),
    "exo_pair": PairLoss(Formula(exo_pair)),
    "nca_pair": PairLoss(Formula(nca_pair), any_divergence=False),
    "robust": PairLoss(Formula(robust)),
    "bco_pair": PairLoss(Formula(bco_pair), any_divergence=False),
    "sppo_hard": PairLoss(Formula(sppo_hard), any_divergence=False),
    "aot": PairLoss(Formula(aot), "margins", whole_batch=True, any_divergence=False),
    "aot_unpaired": PairLoss(Formula(aot), whole_batch=True, any_divergence=False),
    "apo_zero": PairLoss(Formula(apo_zero), any_divergence=False),
    "apo_down": PairLoss(Formula(apo_down), any_divergence=False),
    "discopop": PairLoss(Formula(discopop)),
    "sigmoid_norm": PairLoss(Formula(sigmoid), "averages"),
    "simpo": PairLoss(Formula(simpo), "averages"),
    "orpo": PairLoss(Formula(odds_ratio), "log_probs", any_divergence=False),
}
