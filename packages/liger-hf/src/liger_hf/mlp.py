"""MLPs: down(act(gate(x)) * up(x)) with gate and up apart or in one, and down(act(up(x)))."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .forms import TOLERANCE, Part, Verdict, closest, load
from .plain_linear import are_held, dtype_of, held, is_plain_linear
from .probe import bare, difference, fingerprint, inputs, is_linear, normal, reseed
from .replaced import Patch
from .reporting import Row

__all__ = ["LAYOUTS", "MLP", "Form", "forms"]

PACKAGE = "liger_activations"
FUSED = "glu_linear"  # "glu" with the last projection in it
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu_squared", "sigmoid")
LAYOUTS = {
    "concatenated": "gate|up in one",
    "up_first": "up|gate in one",
    "interleaved": "gate and up interleaved in one",
}
# activations alone that have no op: each is one kernel in PyTorch as well
ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Form(NamedTuple):
    """An op with its options, some of which are attributes of the module."""

    words: str
    op: str
    options: dict[str, Any]
    attributes: dict[str, str]

    def __call__(
        self, op: Callable[..., Tensor], module: nn.Module, *tensors: Tensor | None
    ) -> Tensor:
        numbers = {name: getattr(module, attribute) for name, attribute in self.attributes.items()}
        return op(*tensors, **self.options, **numbers)


def forms(module: nn.Module, layouts: Sequence[str]) -> Iterator[Form]:
    """Gated units of these layouts ("" is two tensors), with the module's own numbers as limits."""
    floats = [name for name, v in vars(module).items() if type(v) is float and v > 0]
    variants: list[tuple[dict[str, Any], dict[str, str]]] = [({}, {})]
    for limit in floats:
        variants += [({"clamp": clamp}, {"limit": limit}) for clamp in ("before", "after")]
    for alpha, limit in permutations(floats, 2):
        variants.append(({"up_offset": 1.0}, {"alpha": alpha, "limit": limit}))
    for layout in layouts:
        for options, attributes in variants:
            for activation in ACTIVATIONS:
                if "alpha" in attributes and activation != "silu":
                    continue
                settings = options | {n: getattr(module, a) for n, a in attributes.items()}
                words = [f"{LAYOUTS[layout] if layout else 'gate and up'}"]
                words += [f"{name}={value}" for name, value in settings.items()]
                known = {"activation": activation} | ({"layout": layout} if layout else {})
                text = f"glu {activation}, {', '.join(words)}"
                yield Form(text, "glu", known | options, attributes)


class MLPPatch(Patch):
    """`into` are the projections before the op, `between` a child after it, `down` the last one,
    `dropout` the attribute with the rate of a dropout at the end. `fused` is the op with the last
    projection in it, or None; each call asks anew whether that may be left out, and likewise
    `skipped`: all other children and functions, the activation among them.
    """

    __slots__ = ("between", "down", "dropout", "form", "fused", "into", "op", "skipped")

    def __init__(
        self, module: nn.Module, row: Row, op: Callable[..., Tensor],
        fused: Callable[..., Tensor] | None, form: Form,
        into: tuple[str, ...], between: str | None, down: str, dropout: str | None,
    ):  # fmt: skip
        super().__init__(module, row)
        self.op, self.fused, self.form, self.into = op, fused, form, into
        self.between, self.down, self.dropout = between, down, dropout
        self.skipped = held(module, {*into, between, down})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, down = self.module, getattr(self.module, self.down)
        # T5 keeps its last projection in fp32, and casts what goes into it
        cast = dtype_of(down) not in (None, dtype_of(getattr(module, self.into[0])))
        if cast or not self.active or len(args) + len(kwargs) != 1 or not are_held(self.skipped):
            return self.inner(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        # through the children's own __call__: by now they may be adapted, quantised or sharded
        hidden = [getattr(module, name)(x) for name in self.into]
        if self.fused is not None and is_plain_linear(down, hidden[0]):
            gate, up = hidden if len(hidden) == 2 else (*hidden, None)
            y = self.form(self.fused, module, gate, up, down.weight, down.bias)
        else:
            y = self.form(self.op, module, *hidden)
            if self.between is not None:
                y = getattr(module, self.between)(y)
            y = down(y)
        if self.dropout is not None:
            y = nn.functional.dropout(y, getattr(module, self.dropout), module.training)
        return y


def _projections(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if is_linear(child)]


def _is_mlp(module: nn.Module) -> bool:
    return len(_projections(module)) in (2, 3) and not module._parameters


def _probe(module: nn.Module) -> Verdict:
    needed = [name for name, need in inputs(type(module).forward).items() if need]
    if len(needed) != 1:
        return Verdict("", reason=f"takes the inputs {', '.join(needed)}")
    names = _projections(module)
    others = [n for n, c in module.named_children() if n not in names and [*c.parameters()]]
    if len(others) > 1:
        return Verdict("", reason=f"has parameters in {', '.join(others)}")
    between, tried = next(iter(others), None), []
    rates = [None, *(name for name, v in vars(module).items() if type(v) is float and 0 < v < 1)]
    for *into, down in permutations(names):
        for wide, candidates in _candidates(module, into):
            small = _small(module, tuple(into), between, down, wide)
            expected = _expected(module, small, _output)
            for form, dropout in product(candidates, rates) if expected else ():
                op = ALONE.get(form.op) or load(PACKAGE, form.op)
                fused = load(PACKAGE, FUSED) if form.op == "glu" and between is None else None
                options = {
                    "op": op, "fused": fused, "form": form, "into": tuple(into),
                    "between": between, "down": down, "dropout": dropout,
                }  # fmt: skip
                gap = _gap(module, small, expected, options, _output)
                if gap <= TOLERANCE[torch.float32]:
                    slopes = _expected(module, small, _gradients)
                    gap = max(gap, _gap(module, small, slopes, options, _gradients))
                if gap <= TOLERANCE[torch.float32]:
                    if form.op in ALONE:
                        return Verdict(form.words, reason="one kernel in PyTorch too")
                    plain = fused is not None and type(getattr(module, down)) is nn.Linear
                    numbers = f"difference {gap:.1e}"
                    return Verdict(
                        form.words, FUSED if plain else form.op, options, numbers=numbers
                    )
                tried.append((gap, gap, form.words))
    return closest(tried)


def _candidates(module: nn.Module, into: list[str]) -> Iterator[tuple[bool, Iterator[Form]]]:
    """Forms for so many projections, and whether one of them is twice as wide."""
    if len(into) == 2:
        yield False, forms(module, ("",))
    else:
        yield True, forms(module, tuple(LAYOUTS))
        yield False, (Form(f"act {name}", name, {}, {}) for name in ("relu_squared", *ALONE))


class _Marked(nn.Module):
    """Stands for an unknown child, so that it is seen where it is called."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(1.0, 2.0, x.shape[-1], dtype=x.dtype)


def _small(
    module: nn.Module, into: tuple[str, ...], between: str | None, down: str, wide: bool
) -> dict[str, nn.Module]:
    hidden, width = 8, 12
    small: dict[str, nn.Module] = {} if between is None else {between: _Marked()}
    for name in into:
        small[name] = _linear(hidden, width * (2 if wide else 1), like=getattr(module, name))
    return small | {down: _linear(width, hidden, like=getattr(module, down))}


def _linear(rows: int, columns: int, like: nn.Module) -> nn.Linear:
    bias = getattr(like, "bias", None) is not None
    linear = nn.Linear(rows, columns, bias=bias, device="cpu", dtype=torch.float32)
    for parameter in linear.parameters():
        parameter.copy_(normal(*parameter.shape))
    return linear


def _cases(module: nn.Module, small: dict[str, nn.Module]) -> Iterator[tuple[nn.Module, Tensor]]:
    # in training too: dropout must not get lost
    for training in (False, True):
        other = bare(module, small, training)
        # at the first scale the two GELUs lie 1.5e-4 apart, at the second limits are passed
        for scale in (0.5, 30.0):
            # both sides drop the same elements, if they drop at the same place
            reseed(1)
            yield other, normal(2, 3, 8) * scale


def _output(call: Callable[[Tensor], Any], x: Tensor, small: dict[str, nn.Module]) -> Any:
    return call(x)


def _gradients(call: Callable[[Tensor], Any], x: Tensor, small: dict[str, nn.Module]) -> Any:
    """By the input and by every parameter."""
    with torch.enable_grad():
        leaves = [x.requires_grad_(), *(p for child in small.values() for p in child.parameters())]
        return torch.autograd.grad(call(x).square().sum(), leaves)


def _expected(module: nn.Module, small: dict[str, nn.Module], run: Callable[..., Any]) -> list[Any]:
    """What `run` makes of the module's own code, and the random state after it; none where it does
    not fit these projections.
    """
    call = type(module).forward
    try:
        return [
            (run(partial(call, other), x, small), torch.get_rng_state())
            for other, x in _cases(module, small)
        ]
    except Exception:
        return []


def _gap(
    module: nn.Module, small: dict[str, nn.Module], expected: list[Any], options: dict[str, Any],
    run: Callable[..., Any],
) -> float:  # fmt: skip
    worst = 0.0
    try:
        for (other, x), (y, state) in zip(_cases(module, small), expected, strict=True):
            patch = MLPPatch(other, Row("", ""), **options)
            patch.active = True
            gap = difference(y, run(patch, x, small))
            # whoever drops draws, however seldom it drops
            worst = max(worst, gap, float(not torch.equal(state, torch.get_rng_state())))
            if worst > 1.0:
                break
    except Exception:
        return float("inf")
    return worst


MLP = Part(
    "mlp", PACKAGE, "glu", ("mlp", "feedforward", "ffn"), _is_mlp, fingerprint, _probe, MLPPatch
)
