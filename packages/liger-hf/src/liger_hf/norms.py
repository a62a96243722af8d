"""Norms: modules without children that have an epsilon and at most a weight and a bias."""

from collections.abc import Callable, Iterator
from itertools import permutations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .forms import TOLERANCE, Part, Verdict, closest, load
from .probe import difference, fingerprint, inputs, normal, stand_in
from .replaced import Patch
from .reporting import Row

__all__ = ["NORMS"]

PACKAGE = "liger_norms"


class Form(NamedTuple):
    """An op, what it is given beside the epsilon, and its options. `shift` is added to the weight
    in the weight's own dtype, where the op's offset is added in fp32.
    """

    op: str
    inputs: int
    tensors: tuple[str, ...]
    options: dict[str, Any]
    shift: float = 0.0

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        options += [f"weight + {self.shift}"] if self.shift else []
        return f"{self.op} {', '.join(options)}".rstrip()


FORMS = (
    Form("rms_norm", 1, ("weight",), {"cast": "before"}),
    Form("rms_norm", 1, ("weight",), {"cast": "after"}),
    Form("rms_norm", 1, ("weight",), {"offset": 1.0, "cast": "after"}),
    Form("rms_norm", 1, ("weight",), {"offset": 1.0, "cast": "before"}),
    Form("rms_norm", 1, ("weight",), {"cast": "after"}, 1.0),
    Form("rms_norm", 1, (), {"cast": "after"}),
    Form("rms_norm", 1, (), {"cast": "rstd"}),
    Form("layer_norm", 1, ("weight", "bias"), {}),
    Form("layer_norm", 1, ("weight", "bias"), {"offset": 1.0}),
    Form("layer_norm", 1, ("weight", "bias"), {}, 1.0),
    Form("layer_norm", 1, ("weight",), {}),
    Form("layer_norm", 1, ("weight",), {"offset": 1.0}),
    Form("layer_norm", 1, (), {}),
    *(
        Form(
            "gated_rms_norm", 2, tensors,
            {"norm_before_gate": first, "activation": act, "cast": cast},
        )
        for first, act, cast, tensors in product(
            (True, False), ("silu", "sigmoid"), ("before", "after"), (("weight",), ())
        )
    ),
)  # fmt: skip
# where a module has no epsilon of its own, its code may hold one of these
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
# dtypes of input and weights; norms may be kept in fp32 inside a bf16 model
SAME = ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16))
MIXED = ((torch.bfloat16, torch.float32),)


class NormPatch(Patch):
    """`names` are what forward calls its inputs, `eps` a number or the attribute that holds it,
    `tensors` the op's names -> attributes, `mixed` whether the form holds for parameters of another
    dtype than the input.
    """

    __slots__ = ("eps", "form", "mixed", "names", "op", "tensors")

    def __init__(
        self, module: nn.Module, row: Row, op: Callable[..., Tensor], form: Form,
        names: tuple[str, ...], eps: str | float, tensors: dict[str, str], mixed: bool,
    ):  # fmt: skip
        super().__init__(module, row)
        self.op, self.form, self.names = op, form, names
        self.eps, self.tensors, self.mixed = eps, tensors, mixed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = args
        if kwargs:
            given += tuple(kwargs[name] for name in self.names[len(args) :] if name in kwargs)
        # a gate may be left out, and a call may have more than the norm's inputs
        whole = len(given) == len(self.names) == len(args) + len(kwargs) and not any(
            x is None for x in given
        )
        if not self.active or not whole:
            return self.inner(*args, **kwargs)
        x = given[0]
        tensors = {role: getattr(self.module, name) for role, name in self.tensors.items()}
        if not self.mixed and any(t.dtype != x.dtype for t in tensors.values()):
            return self.inner(*args, **kwargs)
        # autocast runs the layer_norm of torch in fp32 on some devices
        low = self.form.op == "layer_norm" and x.dtype != torch.float32
        if low and torch.is_autocast_enabled(x.device.type):
            return self.inner(*args, **kwargs)
        if self.form.shift:
            tensors["weight"] = tensors["weight"] + self.form.shift
        return self.op(*given, **tensors, eps=_value(self.module, self.eps), **self.form.options)


def _value(module: nn.Module, eps: str | float) -> float:
    return getattr(module, eps) if isinstance(eps, str) else eps


def _weights(module: nn.Module) -> dict[str, torch.Size]:
    # ZeRO-3 keeps the real shape of a parameter that it has taken apart in ds_shape
    own = module.named_parameters(recurse=False)
    return {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in own}


def _epsilons(module: nn.Module) -> list[str]:
    return [name for name, v in vars(module).items() if type(v) is float and 0 < v < 0.1]


def _is_norm(module: nn.Module) -> bool:
    if module._modules or module._buffers:
        return False
    shapes = _weights(module).values()
    known = bool(_epsilons(module)) or hasattr(module, "normalized_shape")
    return known and len(shapes) <= 2 and all(len(s) == 1 for s in shapes)


def _probe(module: nn.Module) -> Verdict:
    names = tuple(inputs(type(module).forward))
    shapes = _weights(module)
    if len(names) > 2:
        return Verdict("", reason=f"takes the inputs {', '.join(names)}")
    if len(set(shapes.values())) > 1:
        return Verdict("", reason=f"its parameters {', '.join(shapes)} differ in shape")
    tried = []
    for options in _candidates(module, names, tuple(shapes)):
        ratio, gap = _gap(module, options, SAME)
        if ratio <= 1.0:
            options["mixed"] = _gap(module, options, MIXED)[0] <= 1.0
            numbers = f"difference {gap:.1e}, epsilon {_value(module, options['eps']):g}"
            return Verdict(str(options["form"]), options["form"].op, options, numbers=numbers)
        tried.append((ratio, gap, str(options["form"])))
    return closest(tried)


def _candidates(
    module: nn.Module, names: tuple[str, ...], weights: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Options of the patch for every form that takes these inputs and parameters."""
    for form in FORMS:
        if form.inputs != len(names) or len(form.tensors) != len(weights):
            continue
        extras: list[dict[str, Any]] = [{}]
        if form.op == "gated_rms_norm":
            extras += [{"group_size": size} for size in _group_sizes(module)]
        for eps, order, extra in product(
            _epsilons(module) or EPSILONS, permutations(weights), extras
        ):
            yield {
                "op": load(PACKAGE, form.op),
                "form": form._replace(options=form.options | extra),
                "names": names,
                "eps": eps,
                "tensors": dict(zip(form.tensors, order, strict=True)),
                "mixed": True,
            }


def _width(module: nn.Module) -> int:
    shapes: list[Any] = [*_weights(module).values()]
    shapes.append(getattr(module, "normalized_shape", (64,)))
    return shapes[0][-1]


def _group_sizes(module: nn.Module) -> list[int]:
    """From attributes that may be the size or the number of groups."""
    width = _width(module)
    counts = [v for v in vars(module).values() if type(v) is int and 1 < v < width]
    divisors = [v for v in counts if width % v == 0]
    return [*divisors, *(width // v for v in divisors)]


def _gap(
    module: nn.Module, options: dict[str, Any], dtypes: tuple[tuple[torch.dtype, torch.dtype], ...]
) -> tuple[float, float]:
    """The largest difference: in tolerances of its dtype, and as it is."""
    width, count, shapes = _width(module), len(options["names"]), _weights(module)
    # so many that one element rounded the other way counts little
    rows = 1 + 1024 // width
    # rows on whose scale the epsilon counts little, much and alone; of three dimensions, since a
    # group norm would take the last of two for its channels
    scale = torch.tensor([1.0, 0.1, 1e-2, 1e-3, 0.0], dtype=torch.float32)[:, None, None]
    worst = (0.0, 0.0)
    for dtype, weight_dtype in dtypes:
        new = {name: normal(*shape, dtype=weight_dtype) for name, shape in shapes.items()}
        other, x = stand_in(module, new), (normal(5, rows, width) * scale).to(dtype)
        given = (x, normal(5, rows, width, dtype=dtype))[:count]
        patch = NormPatch(other, Row("", ""), **options)
        patch.active = True
        try:
            gap = difference(type(module).forward(other, *given), patch(*given))
        except Exception:
            return float("inf"), float("inf")
        worst = max(worst, (gap / TOLERANCE[dtype], gap))
    return worst


NORMS = Part("norms", PACKAGE, "rms_norm", ("norm",), _is_norm, fingerprint, _probe, NormPatch)
