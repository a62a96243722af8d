"""What the recognisers of norms, MLPs, experts and rotary embeddings have in common.

A recogniser is a `Part`. It holds its canonical forms as rows of data that say how an op is called,
runs the op and a layer's own code on a small input, and takes the first row that agrees. Nothing
decides by the name of a model, a class or an attribute; by the name of its class, a layer that no
form fits is worth a row of the report or not.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .probe import measured
from .replaced import Patch

__all__ = ["TOLERANCE", "Part", "Verdict", "closest", "load"]

# Relative error in the 2-norm. Another order of the same sums stays well below; another epsilon or
# activation, and in bf16 another order of rounding, lies a decade above.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-4}


class Verdict(NamedTuple):
    """What a probe found: a form, with the op and the options of its patch, or the reason why none
    fits. A form can be known and still have no op. `numbers` are what was measured.
    """

    form: str
    op: str = ""
    options: dict[str, Any] | None = None
    reason: str = ""
    numbers: str = ""


class Part(NamedTuple):
    """One keyword of `apply`.

    `candidate` says which modules to probe, `key` which of them share a verdict, `words` in whose
    class name a refusal is worth a row of the report. `probe` runs with `package` installed.
    `patch` is called with the module, the row and the options of the verdict; what it patches is
    the module or, where `target` says so, another one.
    """

    flag: str
    package: str
    op: str
    words: tuple[str, ...]
    candidate: Callable[[nn.Module], bool]
    key: Callable[[nn.Module], object]
    probe: Callable[[nn.Module], Verdict]
    patch: Callable[..., Patch]
    target: Callable[[nn.Module], nn.Module] = lambda module: module


def load(package: str, op: str) -> Callable[..., Any] | None:
    """The op, or None where its package is not installed."""
    try:
        return getattr(importlib.import_module(package), op)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        return None


def closest(tried: list[tuple[float, float, str]]) -> Verdict:
    """The refusal after all these (difference in tolerances, difference, form)."""
    if not tried:
        return Verdict("", reason="no canonical form fits")
    best: dict[str, tuple[float, float, str]] = {}
    for ratio, gap, form in tried:
        best[form] = min(best.get(form, (ratio, gap, form)), (ratio, gap, form))
    ranked = sorted(best.values())
    _, gap, form = ranked[0]
    return Verdict(
        "",
        reason=f"no canonical form fits; closest is {form}, {measured(gap)}",
        numbers="; ".join(f"{form}: {gap:.1e}" for _, gap, form in ranked[:3]),
    )
