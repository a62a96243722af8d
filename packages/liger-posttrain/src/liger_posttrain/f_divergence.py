"""Scores of a response from u = log pi(y) - log pi_ref(y), for each f-divergence that holds the
policy near its reference: f'(exp(u)), up to a constant.

Source: f-DPO, arXiv:2309.16240.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import Formula

__all__ = [
    "F_DIVERGENCES", "alpha_divergence", "forward_kl", "js_divergence", "reverse_kl",
]  # fmt: skip

# exp of more overflows in fp32, and its gradient is NaN where it is multiplied by 0
LARGEST = 80.0


def reverse_kl(u: Tensor) -> Tensor:
    """u: DPO."""
    return u


def forward_kl(u: Tensor) -> Tensor:
    """1 - exp(-u)."""
    return -torch.expm1((-u).clamp(max=LARGEST))


def js_divergence(u: Tensor) -> Tensor:
    """log 2 + log sigma(u)."""
    return math.log(2.0) + F.logsigmoid(u)


def alpha_divergence(u: Tensor, *, f_alpha_divergence_coef: float = 0.5) -> Tensor:
    """(exp((a - 1) u) - 1) / (a - 1), u for a = 1.

    For a score u = log pi(y) / T and a = 1 - alpha it is the reward of AlphaPO, arXiv:2501.03884.
    """
    power = f_alpha_divergence_coef - 1.0
    if abs(power) < 1e-6:
        return u
    return torch.expm1((power * u).clamp(max=LARGEST)) / power


F_DIVERGENCES = {
    "reverse_kl": Formula(reverse_kl),
    "forward_kl": Formula(forward_kl),
    "js_divergence": Formula(js_divergence),
    "alpha_divergence": Formula(alpha_divergence),
}
