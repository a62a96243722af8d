"""Experts of transformers' experts interface: the gate between their two grouped products.

An experts class gets its forward from `config._experts_implementation`: by default "grouped_mm",
torch's grouped GEMM, which is kept. Between its products it calls `self._apply_gate`, or
`self.act_fn` where there is no gate, and these are replaced on the instance. "eager" need not call
them and is left alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import batched_experts
from .forms import TOLERANCE, Part, Verdict, closest, load
from .mlp import LAYOUTS, PACKAGE, Form, forms
from .plain_linear import are_held, held
from .probe import bare, difference, fingerprint, normal
from .replaced import Patch
from .reporting import Row

__all__ = ["EXPERTS"]


class GatePatch(Patch):
    """`name` is `_apply_gate` of the experts, or forward of their activation; `skipped` is asked in
    each call, as in an MLP.
    """

    __slots__ = ("form", "op", "skipped")

    def __init__(
        self, module: nn.Module, row: Row, name: str, op: Callable[..., Tensor], form: Form
    ):
        super().__init__(module, row, name)
        self.op, self.form, self.skipped = op, form, held(module, ())

    def __call__(self, x: Tensor) -> Tensor:
        if not self.active or not are_held(self.skipped):
            return self.inner(x)
        return self.form(self.op, self.module, x)


def _is_experts(module: nn.Module) -> bool:
    return any(len(getattr(p, "ds_shape", p.shape)) == 3 for p in module._parameters.values()
               if p is not None)  # fmt: skip


def _gated(module: nn.Module) -> bool:
    return bool(getattr(module, "has_gate", True))


def _implementation(module: nn.Module) -> str | None:
    return getattr(getattr(module, "config", None), "_experts_implementation", None)


def _target(module: nn.Module) -> nn.Module:
    return module if _gated(module) else getattr(module, "act_fn", module)


def _probe(module: nn.Module) -> Verdict:
    name = "_apply_gate" if _gated(module) else "forward"
    target: Any = _target(module)
    if not hasattr(type(module), "_apply_gate") or (target is module and name == "forward"):
        return batched_experts.probe(module)
    implementation = _implementation(module)
    if implementation == "eager":
        return Verdict("", reason="experts_implementation is eager, set it to grouped_mm")
    width = 12 if name == "forward" else 24
    # values on both sides of a limit, and at a scale that tells the two GELUs apart
    inputs = [normal(6, width) * scale for scale in (1.0, 30.0)]
    tried = []
    try:
        other: Any = bare(target, {})
        expected = [getattr(type(target), name)(other, x) for x in inputs]
    except Exception as error:
        return Verdict("", reason=f"its gate fails on the probe: {type(error).__name__}")
    alone = [Form("act relu_squared", "relu_squared", {}, {})]
    for form in alone if name == "forward" else forms(target, tuple(LAYOUTS)):
        op = load(PACKAGE, form.op)
        assert op is not None
        gap = max(difference(y, form(op, other, x)) for x, y in zip(inputs, expected, strict=True))
        words = f"{implementation} experts, {form.words}"
        if gap <= TOLERANCE[torch.float32]:
            options = {"name": name, "op": op, "form": form}
            return Verdict(words, form.op, options, numbers=f"difference {gap:.1e}")
        tried.append((gap, gap, words))
    return closest(tried)


def _patch(module: nn.Module, row: Row, **options: Any) -> Patch:
    if "gate_up" in options:
        return batched_experts.BatchedPatch(module, row, **options)
    return GatePatch(_target(module), row, **options)


def _key(module: nn.Module) -> object:
    return fingerprint(module), _implementation(module)


EXPERTS = Part(
    "moe", PACKAGE, "glu", ("expert",), _is_experts, _key, _probe, _patch, _target
)  # fmt: skip
