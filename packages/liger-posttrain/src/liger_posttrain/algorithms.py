"""Algorithms of policy optimisation as data: which surrogate, which ratio, which mean.

A new algorithm is a row. What a row does not say is an argument of `LinearGRPOLoss`; what it says
can be overruled there.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["ALGORITHMS", "Algorithm"]


class Algorithm(NamedTuple):
    """Names in `policy.SURROGATES`, `importance.LEVELS` and `reductions.REDUCTIONS`, and options of
    the surrogate where the paper's are not its defaults.
    """

    surrogate: str
    level: str
    reduction: str
    options: Mapping[str, Any] = MappingProxyType({})


ALGORITHMS = {
    # arXiv:2402.03300
    "grpo": Algorithm("clip", "token", "grpo"),
    # a name of TRL: the mean over all tokens of the local batch
    "bnpo": Algorithm("clip", "token", "bnpo"),
    # arXiv:2503.20783
    "dr_grpo": Algorithm("clip", "token", "dr_grpo"),
    # arXiv:2503.14476
    "dapo": Algorithm("clip", "token", "dapo", {"epsilon_high": 0.28}),
    # arXiv:1912.09729
    "dual_clip": Algorithm("clip", "token", "dapo", {"delta": 3.0}),
    # arXiv:2507.18071
    "gspo": Algorithm("clip", "sequence", "grpo", {"epsilon_low": 3e-4, "epsilon_high": 4e-4}),
    "gspo_token": Algorithm(
        "clip", "sequence_token", "grpo", {"epsilon_low": 3e-4, "epsilon_high": 4e-4}
    ),
    # arXiv:2602.05261
    "luspo": Algorithm("clip", "sequence", "luspo"),
    # arXiv:2506.13585, arXiv:2510.13786
    "cispo": Algorithm("cispo", "token", "dapo"),
    # arXiv:2511.20347
    "sapo": Algorithm("sapo", "token", "grpo"),
    # arXiv:2602.10693
    "vespo": Algorithm("vespo", "token", "dapo"),
    # arXiv:2507.20673
    "gmpo": Algorithm("gmpo", "token", "grpo"),
    # arXiv:2402.14740
    "rloo": Algorithm("clip", "sequence_sum", "grpo"),
    "reinforce": Algorithm("reinforce", "token", "dapo"),
}
