"""RMS norms: leaf modules with one epsilon and at most one weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .forms import TOLERANCE, Part, Verdict, closest
from .patch import Patch
from .probe import difference, fingerprint, inputs, normal, stand_in
from .reporting import Row

__all__ = ["NORMS"]

# keyword options of rms_norm
FORMS: tuple[dict[str, Any], ...] = (
    {"cast": "before"},
    {"cast": "after"},
    {"offset": 1.0, "cast": "after"},
)
# dtypes of input and weight; norms may be kept in fp32 inside a bf16 model
DTYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
)


class NormPatch(Patch):
    __slots__ = ("eps", "op", "options", "weight")

    def __init__(
        self, module: nn.Module, row: Row, op: Callable[..., Tensor],
        eps: str, weight: str | None, options: dict[str, Any],
    ):  # fmt: skip
        super().__init__(module, row)
        self.op, self.eps, self.weight, self.options = op, eps, weight, options

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if not self.active:
            return self.inner(*args, **kwargs)
        # one input, by whatever name the caller gives it
        (x,) = (*args, *kwargs.values())
        weight = None if self.weight is None else getattr(self.module, self.weight)
        return self.op(x, weight, getattr(self.module, self.eps), **self.options)


def _weights(module: nn.Module) -> dict[str, torch.Size]:
    # ZeRO-3 keeps the real shape of a parameter that it has taken apart in ds_shape
    own = module.named_parameters(recurse=False)
    return {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in own}


def _epsilons(module: nn.Module) -> list[str]:
    return [name for name, v in vars(module).items() if isinstance(v, float) and 0 < v < 0.1]


def _is_norm(module: nn.Module) -> bool:
    leaf = not (module._modules or module._buffers)
    return leaf and bool(_epsilons(module)) and all(len(s) == 1 for s in _weights(module).values())


def _probe(module: nn.Module, op: Callable[..., Tensor]) -> Verdict:
    if inputs(type(module).forward) != 1:
        return Verdict("", None, "takes more than one input")
    shapes = _weights(module)
    if len(shapes) > 1:
        return Verdict("", None, f"no canonical form has the parameters {', '.join(shapes)}")
    weight = next(iter(shapes), None)
    tried = []
    for eps in _epsilons(module):
        for options in FORMS:
            ratio, gap = _try(module, op, eps, weight, options)
            form = "rms_norm " + ", ".join(f"{name}={value}" for name, value in options.items())
            if ratio <= 1.0:
                return Verdict(form, {"eps": eps, "weight": weight, "options": options})
            tried.append((ratio, gap, form))
    return closest(tried)


def _try(
    module: nn.Module, op: Callable[..., Tensor],
    eps: str, weight: str | None, options: dict[str, Any],
) -> tuple[float, float]:  # fmt: skip
    """The largest difference: in tolerances of its dtype, and as it is."""
    shapes = _weights(module)
    width = shapes[weight][0] if weight else getattr(module, "normalized_shape", (64,))[-1]
    # rows on whose scale the epsilon counts little, much and alone
    scale = torch.tensor([[1.0], [0.1], [1e-2], [1e-3], [0.0]])
    worst = (0.0, 0.0)
    for dtype, weight_dtype in DTYPES:
        new = {name: normal(*shape, dtype=weight_dtype) for name, shape in shapes.items()}
        other, x = stand_in(module, new), (normal(5, width) * scale).to(dtype)
        patch = NormPatch(other, Row("", ""), op, eps, weight, options)
        patch.active = True
        try:
            gap = difference(type(module).forward(other, x), patch(x))
        except Exception:
            return float("inf"), float("inf")
        worst = max(worst, (gap / TOLERANCE[dtype], gap))
    return worst


NORMS = Part(
    "norms", "liger_norms", "rms_norm", ("norm",), _is_norm, fingerprint, _probe, NormPatch
)
