"""One implementation on one row: errors, peak memory, times."""

import contextlib
import dataclasses
import gc
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .clocks import capture, device_times, host_times, peak_mib, summary
from .rows import Inputs, Row

__all__ = ["Case", "deadline", "make_case", "measure"]

# a pass longer than this (ms) is measured with fewer host samples
_LONG = 5.0


@dataclasses.dataclass
class Case:
    """A row made concrete: `inputs` in the measured dtype, and what the reference gives in fp32.

    `leaves` names the inputs with a gradient; `dys` holds the incoming gradient of each output,
    None for a scalar loss.
    """

    row: Row
    device: torch.device
    inputs: Inputs
    leaves: tuple[str, ...]
    dys: list[Tensor | None]
    outputs: list[Tensor]
    gradients: dict[str, Tensor]


def make_case(spec: Any, row: Row, inputs: Inputs, device: torch.device) -> Case:
    """Edit the inputs as the row says and run the reference on them in fp32."""
    if row.edit is not None:
        row.edit(inputs)
    leaves = tuple(name for name in spec.grad if name in inputs and name not in row.frozen)
    leaves = leaves if row.grad else ()
    exact = {name: x.detach().float() if x.is_floating_point() else x for name, x in inputs.items()}
    for name in leaves:
        exact[name].requires_grad_()
    with torch.set_grad_enabled(row.grad):
        outputs = _tensors(row.counted(spec.ref(**exact, **row.options)))
    dtype = next(x.dtype for x in inputs.values() if x.is_floating_point())
    dys = [torch.randn_like(y).to(dtype) if y.ndim else None for y in outputs]
    gradients = {}
    if leaves:
        wide = [None if dy is None else dy.float() for dy in dys]
        grads = torch.autograd.grad(outputs, [exact[name] for name in leaves], wide)
        gradients = dict(zip(leaves, grads, strict=True))
    return Case(row, device, inputs, leaves, dys, [y.detach() for y in outputs], gradients)


def measure(
    case: Case, call: Callable[..., Any], prepare: Any, inplace: bool, graph: bool
) -> dict[str, Any]:
    """Errors, peak and times of `call(**inputs)`, as the package's docstring defines them."""
    runner = _Runner(case, call, prepare, inplace)
    result: dict[str, Any] = {"error": runner.errors()}
    before = runner.restore if inplace else None
    for _ in range(2):
        runner.restore()
        runner.full()
    runner.restore()
    result["peak"] = peak_mib(runner.full, case.device)
    result["full"] = summary(device_times(runner.full, case.device, before))
    if case.leaves:
        result["fwd"] = summary(device_times(runner.forward, case.device, before))
    long = result["full"]["median"] > _LONG
    result["host"] = summary(
        host_times(runner.full, case.device, before, *((1, 10) if long else (5, 20)))
    )
    if graph and case.device.type == "cuda":
        result |= _graph(runner, case.device, before)
    return result


def _graph(runner: "_Runner", device: torch.device, before: Any) -> dict[str, Any]:
    try:
        graph = capture(runner.full, before)
        return {"gpu": summary(device_times(graph.replay, device, before))}
    except (RuntimeError, TypeError, ValueError) as error:
        return {"gpu_failed": first_line(error)}


class _Runner:
    """One implementation on the shared inputs, or on copies of them if it works in place."""

    def __init__(self, case: Case, call: Callable[..., Any], prepare: Any, inplace: bool) -> None:
        self.case, self.call = case, call
        self.inputs = {
            name: x.detach().clone() if inplace else x.detach() for name, x in case.inputs.items()
        }
        for name in case.leaves:
            self.inputs[name].requires_grad_()
        self.arguments = self.inputs if prepare is None else prepare(self.inputs)
        self.targets = [self.inputs[name] for name in case.leaves]
        self.dys: list[Tensor | None] = []
        self.inplace = inplace

    def forward(self) -> list[Tensor]:
        with torch.set_grad_enabled(bool(self.targets)):
            return _tensors(self.call(**self.arguments))

    def full(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs = self.forward()
        if not self.targets:
            return outputs, ()
        return outputs, torch.autograd.grad(outputs, self.targets, self.dys)

    def restore(self) -> None:
        """Undo what an in-place implementation wrote, behind autograd's back."""
        if self.inplace:
            for name, x in self.case.inputs.items():
                self.inputs[name].data.copy_(x)
            for mine, dy in zip(self.dys, self.case.dys, strict=True):
                if mine is not None and dy is not None:
                    mine.copy_(dy)

    def errors(self) -> dict[str, float]:
        """Relative errors of a first pass; incoming gradients get the layout of the outputs."""
        outputs = self.forward()
        layouts = zip(self.case.dys, outputs, strict=True)
        self.dys = [None if dy is None else torch.empty_like(y).copy_(dy) for dy, y in layouts]
        del outputs
        self.restore()
        outputs, gradients = self.full()
        found = {
            f"out{i or ''}": _error(y, exact)
            for i, (y, exact) in enumerate(zip(outputs, self.case.outputs, strict=True))
        }
        for name, gradient in zip(self.case.leaves, gradients, strict=True):
            found[f"d{name}"] = _error(gradient, self.case.gradients[name])
        return found


def _error(result: Tensor, exact: Tensor) -> float:
    norm = float(exact.norm())
    return float((result.detach().float() - exact).norm()) / (norm or 1.0)


def _tensors(outputs: Any) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    return [y for y in outputs if isinstance(y, Tensor)]


def first_line(error: BaseException) -> str:
    """What a result records of an error."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the body after `seconds`, as soon as Python code runs again."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        gc.collect()
