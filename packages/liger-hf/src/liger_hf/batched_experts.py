"""Experts that compute with two batched products of tokens that are sorted by expert, as Llama 4.

y = bmm(act(gate) * up, down),    [gate | up] = bmm(x, gate_up)

x [E * T, H], gate_up [E, H, 2 I], down [E, I, H]; E experts, T tokens each
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .forms import TOLERANCE, Verdict, closest, load
from .mlp import LAYOUTS, PACKAGE, Form, forms
from .plain_linear import are_held, held
from .probe import bare, difference, inputs, normal
from .replaced import Patch
from .reporting import Row

__all__ = ["BatchedPatch", "probe"]


class BatchedPatch(Patch):
    __slots__ = ("down", "form", "gate_up", "op", "skipped")

    def __init__(
        self, module: nn.Module, row: Row, op: Callable[..., Tensor], form: Form,
        gate_up: str, down: str,
    ):  # fmt: skip
        super().__init__(module, row)
        self.op, self.form, self.gate_up, self.down = op, form, gate_up, down
        self.skipped = held(module, ())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active or len(args) + len(kwargs) != 1 or not are_held(self.skipped):
            return self.inner(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        gate_up, down = getattr(self.module, self.gate_up), getattr(self.module, self.down)
        hidden = torch.bmm(x.view(gate_up.shape[0], -1, gate_up.shape[1]), gate_up)
        y = torch.bmm(self.form(self.op, self.module, hidden), down)
        return y.view(-1, y.shape[-1])


def probe(module: nn.Module) -> Verdict:
    refusal = Verdict("", reason="computes its experts itself, not by transformers' interface")
    shapes = {
        name: torch.Size(getattr(p, "ds_shape", p.shape))
        for name, p in module.named_parameters(recurse=False)
    }
    needed = [name for name, need in inputs(type(module).forward).items() if need]
    if len(needed) != 1 or len(shapes) != 2 or any(len(shape) != 3 for shape in shapes.values()):
        return refusal
    (gate_up, (E, H, both)), (down, last) = shapes.items()
    if last != (E, both // 2, H):
        return refusal
    # the module's own sizes may be among its attributes; where two of them are equal, so are these
    small = {E: 2}
    small.setdefault(H, 6)
    small.setdefault(both // 2, 4)
    if small.setdefault(both, 2 * small[both // 2]) != 2 * small[both // 2]:
        return refusal
    new = {n: nn.Parameter(normal(*(small[d] for d in s))) for n, s in shapes.items()}
    other = bare(module, new)
    for name, value in vars(module).items():
        if type(value) is int and value in small:
            vars(other)[name] = small[value]
    # at the first scale the two GELUs lie 1.5e-4 apart, at the second limits are passed
    xs = [normal(3 * small[E], small[H]) * scale for scale in (0.5, 30.0)]
    try:
        expected = [type(module).forward(other, x) for x in xs]
    except Exception:
        return refusal
    tried = []
    for form in forms(module, tuple(LAYOUTS)):
        op = load(PACKAGE, form.op)
        options: dict[str, Any] = {"op": op, "form": form, "gate_up": gate_up, "down": down}
        patch = BatchedPatch(other, Row("", ""), **options)
        patch.active = True
        gap = max(difference(y, patch(x)) for x, y in zip(xs, expected, strict=True))
        words = f"batched experts, {form.words}"
        if gap <= TOLERANCE[torch.float32]:
            return Verdict(words, form.op, options, numbers=f"difference {gap:.1e}")
        tried.append((gap, gap, words))
    return closest(tried)
