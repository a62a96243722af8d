"""The launch path of CUDA tensors, with Triton's side of it played by stand-ins."""

import pytest
import torch
from liger_core import launch
from liger_core.lang import HAS_TRITON, triton

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
STREAM = 5


class Compiled:
    function, packed_metadata = 7, (4, 1)

    def __init__(self):
        self.runs, self.profiled = [], []

    def run(self, *args):
        self.runs.append(args)

    def __getitem__(self, grid):
        return lambda *args, stream: self.profiled.append((grid, args, stream))


class Kernel:
    arg_names = ("X", "RESIDUAL", "n", "eps", "FIRST", "SECOND")

    def __init__(self):
        self.compiled = []

    def __getitem__(self, grid):
        def compile_and_run(*args, **options):
            self.compiled.append(Compiled())
            return self.compiled[-1]

        return compile_and_run


@pytest.fixture
def call(monkeypatch):
    """Launches a kernel on X, RESIDUAL, n, eps; tells how often it was compiled."""
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM, raising=False)
    monkeypatch.setattr(launch, "_compiled", {})

    def run(kernel, *args, num_warps=4, first=1):
        constants = {"SECOND": 2, "FIRST": first}
        launch._launch_cuda(kernel, (3,), args, 0, num_warps, 3, constants)
        return len(kernel.compiled)

    return run


def test_known_key_goes_to_the_compiled_kernel(call):
    kernel, x, residual = Kernel(), torch.ones(4), torch.ones(4)
    assert call(kernel, x, None, 32, 1e-6) == 1
    assert not kernel.compiled[0].runs
    assert call(kernel, residual, None, 48, 1e-5) == 1
    given = 7, (4, 1), None, None, None, residual.data_ptr(), None, 48, 1e-5
    assert kernel.compiled[0].runs == [(3, 1, 1, STREAM, *given, 1, 2)]


@pytest.mark.parametrize(
    ("change", "compilations"),
    [
        ({}, 1),
        ({"n": 0}, 1),
        ({"n": 2**31 - 16}, 1),
        ({"n": 33}, 2),
        ({"n": 1}, 2),
        ({"n": 2**31}, 2),
        ({"n": -16}, 1),
        ({"n": 32.0}, 2),
        ({"n": None}, 2),
        ({"eps": 1e-3}, 1),
        ({"eps": 1}, 2),
        ({"x": torch.ones(4, dtype=torch.float64)}, 2),
        ({"x": torch.ones(5)[1:]}, 2),
        ({"residual": torch.ones(4)}, 2),
        ({"num_warps": 8}, 2),
        ({"first": 3}, 2),
    ],
)  # fmt: skip
def test_what_the_code_depends_on(call, change, compilations):
    kernel = Kernel()
    usual = {"x": torch.ones(4), "residual": None, "n": 32, "eps": 1e-6}
    for given in (usual, usual | change):
        args = [given.pop(name) for name in ("x", "residual", "n", "eps") if name in given]
        compiled = call(kernel, *args, **given)
    assert compiled == compilations


def test_kernels_do_not_share(call):
    x, kernels = torch.ones(4), (Kernel(), Kernel())
    assert [call(kernel, x, None, 32, 1e-6) for kernel in kernels] == [1, 1]


def test_a_profiler_sees_tensors(call):
    kernel, x = Kernel(), torch.ones(4)
    call(kernel, x, None, 32, 1e-6)
    hooks = triton.knobs.runtime.launch_enter_hook

    def hook(metadata):
        """Never called: the stand-in launches nothing."""

    hooks.add(hook)
    try:
        call(kernel, x, None, 32, 1e-6)
    finally:
        hooks.remove(hook)
    (profiled,) = kernel.compiled[0].profiled
    assert profiled == ((3, 1, 1), (x, None, 32, 1e-6, 1, 2), STREAM)
    assert not kernel.compiled[0].runs


def test_no_storage(call):
    with pytest.raises(ValueError, match=r"shape \(4,\) has no storage"):
        call(Kernel(), torch.empty(4, device="meta"), None, 32, 1e-6)
