"""Run an op or a reference forward and backward on a case, and prepare what it runs on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .numerics import assert_accurate, same_bits
from .spec import Builder, Inputs, OpSpec, Shape

__all__ = ["LAYOUTS", "Case", "Result", "check_values", "device", "evaluate", "tensors_of"]

DTYPE_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
}


def device() -> torch.device:
    """Where ops are tested: the accelerator, if there is one and kernels are not interpreted."""
    from .interpreter import interpreting

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if interpreting() or accelerator is None else accelerator


@dataclass(frozen=True, repr=False)
class Case:
    """One spec with one choice of shape, options and dtype."""

    spec: OpSpec
    shape: Shape
    options: Mapping[str, Any]
    dtype: torch.dtype

    def __repr__(self) -> str:
        options = [f"{k}={v}" for k, v in self.options.items()]
        return "-".join(
            [self.spec.name, DTYPE_NAMES[self.dtype], "x".join(map(str, self.shape)), *options]
        )

    def without_inplace(self) -> "Case":
        """The same case with inputs left alone."""
        return replace(self, options={k: v for k, v in self.options.items() if k != "inplace"})

    def inputs(self, seed: int = 0, on: torch.device | None = None) -> Inputs:
        return self.spec.inputs(Builder(self.dtype, on or device(), seed), self.shape)

    def run(
        self,
        inputs: Inputs,
        grad_outputs: Sequence[Tensor] | None = None,
        wanted: Sequence[str] | None = None,
    ) -> "Result":
        """The op on these inputs."""
        return evaluate(
            self.spec.op,
            inputs,
            self.options,
            self.spec.grad if wanted is None else wanted,
            grad_outputs,
        )


@dataclass
class Result:
    """Outputs, the gradient that came in for each, and the gradients of the inputs."""

    outputs: list[Tensor]
    grad_outputs: list[Tensor]
    grads: dict[str, Tensor | None]

    def named(self) -> dict[str, Tensor | None]:
        return {f"output {i}": t for i, t in enumerate(self.outputs)} | {
            f"gradient of {n}": g for n, g in self.grads.items()
        }

    def rows(self, names: Sequence[str], part: slice = slice(None)) -> "Result":
        """Some rows of the outputs and of the gradients of `names`."""
        grads = {n: g if g is None else g[part] for n, g in self.grads.items() if n in names}
        return Result([t[part] for t in self.outputs], [g[part] for g in self.grad_outputs], grads)

    def assert_same(self, other: "Result", what: str) -> None:
        for (name, a), b in zip(self.named().items(), other.named().values(), strict=True):
            assert same_bits(a, b), f"{name} has other bits: {what}"


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors of an op's result: one, or a tuple with None for what was not asked."""
    return (
        [outputs] if isinstance(outputs, Tensor) else [t for t in outputs if isinstance(t, Tensor)]
    )


def leaves(
    inputs: Inputs, wanted: Sequence[str], options: Mapping[str, Any]
) -> tuple[Inputs, Inputs]:
    """(arguments, what to differentiate by): of the same strides, `wanted` requires gradients."""
    sources = {name: t.detach().requires_grad_(name in wanted) for name, t in inputs.items()}
    # an op may not write a leaf, whoever asks for it
    args = {n: t.clone() if options.get("inplace") else t for n, t in sources.items()}
    return args, sources


def evaluate(
    function: Callable[..., Any],
    inputs: Inputs,
    options: Mapping[str, Any],
    wanted: Sequence[str],
    grad_outputs: Sequence[Tensor] | None = None,
) -> Result:
    """Forward and backward; fails if an input or an incoming gradient is written.

    `grad_outputs` has one tensor per output and defaults to normal noise, the same in every run
    with the same shapes.
    """
    args, sources = leaves(inputs, wanted, options)
    before = {name: t.detach().clone() for name, t in inputs.items()}
    outputs = tensors_of(function(**args, **options))
    if grad_outputs is None:
        grad_outputs = noise_like(outputs)
    pairs = [(t, g) for t, g in zip(outputs, grad_outputs, strict=True) if t.requires_grad]
    incoming = [g.clone() for g in grad_outputs]
    asked = [sources[name] for name in wanted]
    grads: Sequence[Tensor | None] = ()
    if asked and pairs:
        differentiable, given = zip(*pairs, strict=True)
        grads = torch.autograd.grad(differentiable, asked, given, allow_unused=True)
    for name, tensor in before.items():
        assert options.get("inplace") or same_bits(tensor, inputs[name]), (
            f"input {name} was written"
        )
    for i, (a, b) in enumerate(zip(incoming, grad_outputs, strict=True)):
        assert same_bits(a, b), f"incoming gradient {i} was written"
    found = dict(zip(wanted, grads, strict=True)) if grads else dict.fromkeys(wanted)
    return Result(
        [t.detach() for t in outputs],
        list(grad_outputs),
        {n: found.get(n) for n in inputs if n in found},
    )


def noise_like(tensors: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """Normal noise for incoming gradients."""
    new = {t.dtype: Builder(t.dtype, t.device, seed) for t in tensors}
    return [new[t.dtype].normal(*t.shape) for t in tensors]


def _cast(tensors: Inputs, dtype: torch.dtype) -> Inputs:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def check_values(
    case: Case, inputs: Inputs, result: Result, note: str = "", bound: float | None = None
) -> None:
    """Compare a result of the op to the reference, by the yardstick and the spec's bound."""
    bound = case.spec.bound if bound is None else bound
    options = {k: v for k, v in case.options.items() if k not in case.spec.op_only}
    contiguous = {n: t.contiguous() for n, t in inputs.items()}
    wanted = tuple(result.grads)
    eager = evaluate(case.spec.ref, contiguous, options, wanted, result.grad_outputs)
    incoming = [g.double() for g in result.grad_outputs]
    exact_inputs = _cast(contiguous, torch.float64)
    truth = evaluate(case.spec.ref, exact_inputs, options, wanted, incoming)
    ulp = torch.finfo(torch.promote_types(case.dtype, torch.float32)).eps
    nearby = {n: _moved(t, ulp) for n, t in exact_inputs.items()}
    moved = evaluate(
        case.spec.ref, nearby, options, wanted, [_moved(g, ulp) for g in incoming]
    ).named()
    assert len(result.outputs) == len(eager.outputs), (
        f"{len(result.outputs)} outputs, expected {len(eager.outputs)}"
    )
    for name, actual in result.named().items():
        expected, exact = eager.named()[name], truth.named()[name]
        if actual is None or expected is None or exact is None:
            assert actual is expected, f"{name}: {actual}, expected {expected}"
        else:
            assert_accurate(f"{case} {name}{note}", actual, expected, exact, bound, moved[name])


def _moved(x: Tensor, ulp: float) -> Tensor:
    """Each element a little up or down."""
    if not x.is_floating_point():
        return x
    signs = Builder(torch.float64, x.device).integers(2, *x.shape) * 2 - 1
    return x * (1 + ulp * signs)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.ndim > 1 else _strided(x)


def _strided(x: Tensor) -> Tensor:
    return torch.stack((x, x), dim=-1)[..., 0] if x.ndim else x


def _sliced(x: Tensor) -> Tensor:
    """Rows that are part of longer rows; starts at an odd offset."""
    return (
        torch.cat((x[..., :1], x, x[..., :1]), dim=-1)[..., 1:-1] if x.ndim and x.shape[-1] else x
    )


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape) if x.ndim and len(x) else x


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": _transposed,
    "strided": _strided,
    "sliced": _sliced,
    "expanded": _expanded,
}
