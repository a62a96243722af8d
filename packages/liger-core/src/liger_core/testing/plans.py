"""Properties of launches at shapes too large to run here, on fake tensors (see `checks.py`)."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from . import launches
from .interpreter import interpreting
from .memory import assert_peak, counted_peak
from .running import Case, leaves, tensors_of
from .selection import per_spec
from .spec import OpSpec

__all__ = ["Plans", "plan"]


def plan(case: Case) -> int:
    """Forward and backward on fake tensors; returns the number of launches."""
    before = launches.count()
    with FakeTensorMode():
        inputs = case.inputs(on=torch.device("cpu"))
        args, sources = leaves(inputs, case.spec.grad, case.options)
        outputs = [t for t in tensors_of(case.spec.op(**args, **case.options)) if t.requires_grad]
        asked = [sources[name] for name in case.spec.grad]
        torch.autograd.grad(outputs, asked, [torch.ones_like(t) for t in outputs])
    return launches.count() - before


class Plans:
    @per_spec
    def test_bench_launches(self, spec: OpSpec) -> None:
        """Kernels stay in bounds at the listed shapes, which the compile check gets."""
        if not interpreting():
            pytest.skip("launches are planned in the interpreter")
        for bench in spec.bench:
            with launches.listed():
                assert plan(Case(spec, bench.shape, bench.options, bench.dtype)), (
                    f"no launch at {bench.shape}"
                )

    @per_spec
    def test_peak(self, spec: OpSpec) -> None:
        """Peak memory at the listed shapes is the documented formula."""
        if not interpreting():
            pytest.skip("launches are planned in the interpreter")
        assert spec.peak or not spec.bench, f"{spec.name}: give `peak`, or skip this"
        for bench in spec.bench:
            case = Case(spec, bench.shape, bench.options, bench.dtype)
            with FakeTensorMode():
                inputs = case.inputs(on=torch.device("cpu"))
                assert_peak(case, counted_peak(case, inputs), inputs)

    @per_spec
    def test_large_offsets(self, spec: OpSpec) -> None:
        """Offsets beyond 2^31 elements neither wrap nor leave their tensor."""
        if not interpreting():
            pytest.skip("launches are planned in the interpreter")
        assert spec.huge, (
            f"{spec.name}: give `huge`, a shape of more than 2^31 elements, or skip this"
        )
        for options in spec.options:
            assert plan(Case(spec, spec.huge, options, torch.bfloat16)), f"no launch at {spec.huge}"
