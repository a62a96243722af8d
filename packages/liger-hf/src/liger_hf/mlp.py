"""Gated MLPs: down(act(gate(x)) * up(x)), with gate and up apart or in one projection."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from .forms import TOLERANCE, Part, Verdict, closest
from .patch import Patch
from .probe import difference, fingerprint, inputs, is_linear, normal, stand_in
from .reporting import Row

__all__ = ["MLP"]

ACTIVATIONS = ("silu", "gelu_tanh")
# projections beside down, whether up comes before gate -> form
LAYOUTS = {(2, False): "gate and up", (1, False): "gate|up in one", (1, True): "up|gate in one"}


class GLUPatch(Patch):
    __slots__ = ("activation", "down", "gate", "op", "swap", "up")

    def __init__(
        self, module: nn.Module, row: Row, op: Callable[..., Tensor],
        gate: str, up: str | None, down: str, activation: str, swap: bool,
    ):  # fmt: skip
        super().__init__(module, row)
        self.op, self.gate, self.up, self.down = op, gate, up, down
        self.activation, self.swap = activation, swap

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if not self.active:
            return self.inner(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        # through the children's own __call__: by now they may be adapted, quantised or sharded
        gate = getattr(self.module, self.gate)(x)
        up = None if self.up is None else getattr(self.module, self.up)(x)
        if self.swap:
            up, gate = gate.chunk(2, dim=-1)
        return getattr(self.module, self.down)(self.op(gate, up, self.activation))


def _projections(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if is_linear(child)]


def _is_mlp(module: nn.Module) -> bool:
    return len(_projections(module)) in (2, 3) and not module._parameters


def _probe(module: nn.Module, op: Callable[..., Tensor]) -> Verdict:
    if inputs(type(module).forward) != 1:
        return Verdict("", None, "takes more than one input")
    names = _projections(module)
    others = [child for name, child in module.named_children() if name not in names]
    if any(True for child in others for _ in child.parameters()):
        return Verdict("", None, "has parameters beside its projections")
    tried = []
    for *ups, down in permutations(names):
        roles = {"gate": ups[0], "up": ups[1] if len(ups) == 2 else None, "down": down}
        for (count, swap), layout in LAYOUTS.items():
            for activation in ACTIVATIONS if count == len(ups) else ():
                options = {**roles, "activation": activation, "swap": swap}
                gap, form = _try(module, op, options), f"glu {activation}, {layout}"
                if gap <= TOLERANCE[torch.float32]:
                    return Verdict(form, options)
                tried.append((gap, gap, form))
    return closest(tried)


def _try(module: nn.Module, op: Callable[..., Tensor], options: dict[str, Any]) -> float:
    hidden, width = 8, 12
    sizes = {options["gate"]: (hidden, width), options["down"]: (width, hidden)}
    if options["up"] is None:
        sizes[options["gate"]] = (hidden, 2 * width)
    else:
        sizes[options["up"]] = (hidden, width)
    small = {name: _linear(*size, like=getattr(module, name)) for name, size in sizes.items()}
    # at this scale the two GELUs lie 1.5e-4 apart
    x, worst = normal(2, 3, hidden) * 0.5, 0.0
    try:
        # in training too: dropout must not get lost
        for training in (False, True):
            other = stand_in(module, small, training)
            patch = GLUPatch(other, Row("", ""), op, **options)
            patch.active = True
            worst = max(worst, difference(type(module).forward(other, x), patch(x)))
    except Exception:
        return float("inf")
    return worst


def _linear(rows: int, columns: int, like: nn.Module) -> nn.Linear:
    bias = getattr(like, "bias", None) is not None
    linear = nn.Linear(rows, columns, bias=bias, device="cpu", dtype=torch.float32)
    for parameter in linear.parameters():
        parameter.copy_(normal(*parameter.shape))
    return linear


MLP = Part(
    "mlp", "liger_activations", "glu", ("mlp", "feedforward", "ffn"),
    _is_mlp, fingerprint, _probe, GLUPatch,
)  # fmt: skip
