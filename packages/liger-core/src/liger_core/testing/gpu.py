"""Properties that need a GPU: torch.compile, CUDA graphs, reruns, syncs, 2^31 elements, devices."""

import pytest
import torch

from .memory import assert_peak, measured_peak
from .numerics import same_bits
from .running import Case, check_values, evaluate, leaves, tensors_of
from .selection import per_option, per_spec
from .spec import OpSpec

__all__ = ["Gpu"]

RERUNS = 100


class Gpu:
    @pytest.mark.gpu
    @per_option
    def test_compile(self, case: Case) -> None:
        """torch.compile(fullgraph=True) is as right as the eager call, also as shapes change."""
        torch._dynamo.reset()
        case = case.without_inplace()
        compiled = torch.compile(case.spec.op, fullgraph=True)
        for shape in case.spec.shapes[:2]:
            other = Case(case.spec, shape, case.options, case.dtype)
            inputs = other.inputs()
            check_values(
                other, inputs, evaluate(compiled, inputs, case.options, case.spec.grad), " compiled"
            )

    @pytest.mark.gpu
    @per_option
    def test_cuda_graph(self, case: Case) -> None:
        """A CUDA graph captures both passes; its replay on new values has an eager call's bits."""
        static, incoming, captured = case.inputs(), case.run(case.inputs()).grad_outputs, []
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                _bare(case, static, incoming)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = _bare(case, static, incoming)
        fresh = case.inputs(seed=5)
        for name, tensor in fresh.items():
            static[name].copy_(tensor)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(captured, _bare(case, fresh, incoming), strict=True):
            assert same_bits(a, b), "a replay differs from an eager call"

    @pytest.mark.gpu
    @per_option
    def test_reruns(self, case: Case) -> None:
        """A hundred runs, the same bits."""
        inputs = case.inputs()
        first = case.run(inputs)
        for _ in range(RERUNS):
            first.assert_same(case.run(inputs), "a rerun differs")

    @pytest.mark.gpu
    @per_option
    def test_no_host_sync(self, case: Case) -> None:
        """Neither forward nor backward waits for the device."""
        inputs, incoming = case.inputs(), case.run(case.inputs()).grad_outputs
        torch.cuda.set_sync_debug_mode("error")
        try:
            _bare(case, inputs, incoming)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.gpu
    @per_spec
    def test_peak_on_gpu(self, spec: OpSpec) -> None:
        """Peak memory at the listed shapes is the documented formula."""
        assert spec.peak or not spec.bench, f"{spec.name}: give `peak`, or skip this"
        for bench in spec.bench:
            case = Case(spec, bench.shape, bench.options, bench.dtype)
            inputs = case.inputs()
            # the first pass also allocates what libraries keep, such as the workspace of cuBLAS
            measured_peak(case, inputs)
            assert_peak(case, measured_peak(case, inputs), inputs)

    @pytest.mark.gpu
    @pytest.mark.slow
    @per_spec
    def test_huge(self, spec: OpSpec) -> None:
        """With more than 2^31 elements the last rows have the bits that they have alone."""
        assert spec.huge, (
            f"{spec.name}: give `huge`, a shape of more than 2^31 elements, or skip this"
        )
        for options in spec.options:
            case = Case(spec, spec.huge, options, torch.bfloat16)
            inputs = case.inputs()
            full = case.run(inputs)
            if any(t.ndim == 0 for t in full.outputs):
                continue
            tail = slice(-2, None)
            last = {n: t[tail] if n in spec.rows else t for n, t in inputs.items()}
            part = case.run(last, [g[tail] for g in full.grad_outputs])
            full.rows(spec.rows, tail).assert_same(part.rows(spec.rows), "the last rows are wrong")
            del inputs, full, last, part
            torch.cuda.empty_cache()

    @pytest.mark.gpu
    @per_option
    def test_other_device(self, case: Case) -> None:
        """Tensors on a device that is not the current one."""
        if torch.cuda.device_count() < 2:
            pytest.skip("needs two GPUs")
        inputs = case.inputs(on=torch.device("cuda:1"))
        assert torch.cuda.current_device() == 0
        check_values(case, inputs, case.run(inputs), " on the second device")


def _bare(
    case: Case, inputs: dict[str, torch.Tensor], incoming: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Forward and backward without the checks of `evaluate`, which wait for the device."""
    args, sources = leaves(inputs, case.spec.grad, case.options)
    outputs = tensors_of(case.spec.op(**args, **case.options))
    pairs = [(t, g) for t, g in zip(outputs, incoming, strict=True) if t.requires_grad]
    differentiable, given = zip(*pairs, strict=True)
    grads = torch.autograd.grad(differentiable, [sources[n] for n in case.spec.grad], given)
    return [t.detach() for t in outputs] + list(grads)
