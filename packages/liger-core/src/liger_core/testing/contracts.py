"""Properties about behaviour: what an op writes, saves, repeats and refuses."""

import copy
import re

import pytest
import torch

from ..lang import HAS_TRITON
from . import launches, poison
from .interpreter import interpreting, program_order
from .numerics import same_bits
from .running import Case, check_values, evaluate, leaves, noise_like, tensors_of
from .selection import per_option, per_spec
from .spec import HALF, OpSpec
from .tracing import traced_kernels

__all__ = ["Contracts"]

ORDERS = 3


class Subclass(torch.Tensor):
    """A tensor subclass without behaviour of its own."""


class Contracts:
    @per_option
    def test_inputs_unchanged(self, case: Case) -> None:
        """Inputs and incoming gradients keep their bits and their version counters."""
        inputs = case.inputs()
        versions = {n: t._version for n, t in inputs.items()}
        case.without_inplace().run(inputs)
        assert versions == {n: t._version for n, t in inputs.items()}

    @per_option
    def test_outputs_written(self, case: Case) -> None:
        """Whatever fills fresh memory, the results have the same bits."""
        inputs, results = case.inputs(), []
        for value in (float("nan"), 1e4):
            with poison.filled(value):
                results.append(case.run(inputs))
        results[0].assert_same(results[1], "it depends on uninitialised memory")

    @per_option
    def test_deterministic(self, case: Case) -> None:
        """The same bits from every run, and from every order of programs."""
        inputs, results = case.inputs(), []
        for seed in range(ORDERS):
            program_order(seed)
            results.append(case.run(inputs))
        for other in results[1:]:
            results[0].assert_same(
                other,
                "it depends on the order of programs" if interpreting() else "two runs differ",
            )

    @per_option
    def test_second_backward(self, case: Case) -> None:
        """With retain_graph a second backward gives the first one's bits, or raises."""
        outputs, asked, grads = _forward(case)
        first = torch.autograd.grad(outputs, asked, grads, retain_graph=True)
        try:
            second = torch.autograd.grad(outputs, asked, grads)
        except RuntimeError:
            return
        for name, a, b in zip(case.spec.grad, first, second, strict=True):
            assert same_bits(a, b), f"the second gradient of {name} differs from the first"

    @per_option
    def test_double_backward(self, case: Case) -> None:
        """Differentiating a gradient raises a clear error; in plain PyTorch it may work."""
        outputs, asked, grads = _forward(case)
        if not interpreting() and outputs[0].device.type == "cpu":
            torch.autograd.grad(outputs, asked, grads, create_graph=True)
            return
        # PyTorch can only tell if the incoming gradient is part of a graph, as in real use
        first = torch.autograd.grad(
            outputs, asked, [g.requires_grad_() for g in grads], create_graph=True
        )
        total = torch.stack([g.float().sum() for g in first]).sum()
        with pytest.raises(
            RuntimeError, match=r"once_differentiable|double backward|differentiat.* twice"
        ):
            total.backward()

    @per_option
    def test_no_grad(self, case: Case) -> None:
        """Under no_grad and for frozen inputs nothing is saved for a backward."""
        case = case.without_inplace()
        inputs = case.inputs()
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
            frozen = tensors_of(case.spec.op(**inputs, **case.options))
            args, _ = leaves(inputs, case.spec.grad, {})
            with torch.no_grad():
                outputs = tensors_of(case.spec.op(**args, **case.options))
        assert not saved, f"{len(saved)} tensors were saved for a backward that cannot come"
        assert not any(t.requires_grad for t in frozen + outputs)

    @per_option
    def test_autocast(self, case: Case) -> None:
        """Under autocast values are finite and gradients have the dtype of their inputs."""
        for dtype in HALF:
            inputs = case.inputs()
            args, sources = leaves(inputs, case.spec.grad, case.options)
            kind = next(iter(inputs.values())).device.type
            with torch.autocast(kind, dtype=dtype):
                outputs = tensors_of(case.spec.op(**args, **case.options))
            differentiable = [t for t in outputs if t.requires_grad]
            asked = [sources[n] for n in case.spec.grad]
            grads = torch.autograd.grad(differentiable, asked, noise_like(differentiable))
            for name, grad in zip(case.spec.grad, grads, strict=True):
                assert grad.dtype == inputs[name].dtype, f"gradient of {name}: {grad.dtype}"
                assert grad.isfinite().all(), f"gradient of {name} under autocast"
            assert all(t.isfinite().all() for t in outputs)

    @per_option
    def test_parameter_subclass(self, case: Case) -> None:
        """Parameters, and parameters that hold a tensor subclass, are inputs like any other."""
        case = case.without_inplace()
        inputs = case.inputs()
        expected = case.run(inputs)
        for kind in (torch.Tensor, Subclass):
            parameters = {
                n: torch.nn.Parameter(inputs[n].detach().clone().as_subclass(kind))
                for n in case.spec.grad
            }
            outputs = tensors_of(case.spec.op(**(inputs | parameters), **case.options))
            pairs = [
                (t, g)
                for t, g in zip(outputs, expected.grad_outputs, strict=True)
                if t.requires_grad
            ]
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
            for name, parameter in parameters.items():
                grad, right = parameter.grad, expected.grads[name]
                grad = grad if grad is None else grad.as_subclass(torch.Tensor)
                assert same_bits(grad, right), f"gradient of a {kind.__name__} parameter {name}"

    @per_spec
    def test_mixed_dtypes(self, spec: OpSpec) -> None:
        """The combinations of dtypes that the spec names, e.g. bf16 x with an fp32 weight."""
        for options in spec.options:
            for dtypes in spec.mixed:
                case = Case(spec, spec.shapes[0], options, spec.dtypes[0])
                inputs = {n: t.to(dtypes.get(n, t.dtype)) for n, t in case.inputs().items()}
                check_values(case, inputs, case.run(inputs), f" with {dtypes}")

    @per_spec
    def test_errors(self, spec: OpSpec) -> None:
        """Bad calls raise the documented error, in one line, before any launch."""
        assert spec.errors, f"{spec.name}: list bad calls in `errors`, or skip with a reason"
        for change, exception, match in spec.errors:
            case = Case(spec, spec.shapes[0], spec.options[0], spec.dtypes[0])
            arguments = copy.copy({**case.inputs(), **case.options})
            change(arguments)
            before = launches.count()
            with pytest.raises(exception, match=match) as caught:
                spec.op(**arguments)
            assert launches.count() == before, f"a kernel was launched before {caught.value!r}"
            assert not re.search(r"\n", str(caught.value)), f"more than one line: {caught.value}"

    @per_option
    def test_compile_cpu(self, case: Case) -> None:
        """torch.compile(fullgraph=True) traces forward and backward of the PyTorch path, also as
        shapes change.
        """
        if interpreting():
            pytest.skip("interpreted kernels cannot be traced")
        case = case.without_inplace()
        torch._dynamo.reset()
        compiled = torch.compile(case.spec.op, fullgraph=True, backend="aot_eager")
        for shape in case.spec.shapes[:2]:
            other = Case(case.spec, shape, case.options, case.dtype)
            inputs = other.inputs()
            check_values(
                other, inputs, evaluate(compiled, inputs, case.options, case.spec.grad), " compiled"
            )

    @per_option
    def test_compile_traces_kernels(self, case: Case) -> None:
        """torch.compile(fullgraph=True) traces what a GPU would run, forward and backward."""
        _assert_traced(case, dynamic=False)

    @per_spec
    def test_compile_traces_dynamic_shapes(self, spec: OpSpec) -> None:
        """It does so where all sizes but 0 and 1 are symbols."""
        shapes = [shape for shape in spec.shapes if all(shape)]
        assert shapes, f"{spec.name}: every shape is empty"
        for shape in shapes:
            _assert_traced(Case(spec, shape, spec.options[0], spec.dtypes[0]), dynamic=True)


def _assert_traced(case: Case, dynamic: bool) -> None:
    if interpreting() or not HAS_TRITON:
        pytest.skip("Triton's kernels are traced, not interpreted ones")
    case = case.without_inplace()
    args, _ = leaves(case.inputs(), case.spec.grad, case.options)
    found = traced_kernels(case.spec.op, dynamic, **args, **case.options)
    assert found, f"the graph of {case} has no kernel"


def _forward(case: Case) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    args, sources = leaves(case.inputs(), case.spec.grad, case.options)
    outputs = [t for t in tensors_of(case.spec.op(**args, **case.options)) if t.requires_grad]
    return outputs, [sources[name] for name in case.spec.grad], noise_like(outputs)
