"""The repaired interpreter computes what compiled code computes, and its checks see faults."""

import math
from types import SimpleNamespace

import pytest
import torch
from liger_core.testing import bf16, launches
from liger_core.testing.checks import KernelFault, View
from liger_core.testing.interpreter import interpreting, program_order

triton = pytest.importorskip("triton")
tl = triton.language
pytestmark = pytest.mark.skipif(not interpreting(), reason="kernels run in the interpreter only")


@triton.jit
def _convert(X, Y, N, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(X + at, mask=at < N, other=0.0)
    tl.store(Y + at, x.to(Y.dtype.element_ty), mask=at < N)


@triton.jit
def _arithmetic(A, B, C, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a, b = tl.load(A + at), tl.load(B + at)
    if OP == "add":
        c = a + b
    elif OP == "mul":
        c = a * b
    elif OP == "max":
        c = tl.maximum(a, b)
    elif OP == "where":
        c = tl.where(a < b, a, b)
    else:
        c = -tl.abs(a)
    tl.store(C + at, c)


@triton.jit
def _dot(A, B, C, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(C + at, tl.dot(tl.load(A + at), tl.load(B + at), input_precision=PRECISION))


@triton.jit
def _scalars(OUT, number, start, stop, step):
    # int64 where a bound is, so that the product does not wrap; the float is an fp32 tensor
    for i in range(start, stop, step):
        tl.store(OUT, i * step)
    tl.store(OUT + 1, number.to(tl.float64).to(OUT.dtype.element_ty, bitcast=True))


@triton.jit
def _order(OUT, COUNT):
    tl.store(OUT + tl.atomic_add(COUNT, 1), tl.program_id(0) * 10 + tl.program_id(1))


@triton.jit
def _libdevice(X, Y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(X + at)
    fast = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )
    tl.store(Y + at, tl.extra.libdevice.tanh(x) + fast)


def bf16_values():
    """All bf16 neighbours of random fp32 numbers, ties, subnormals and the largest."""
    x = torch.randn(4096).exp() * torch.randn(4096).sign()
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -3.4e38, 1e-40, 0.0, math.inf, math.nan])
    return torch.cat([x, ties])


def test_bf16_rounds_to_nearest_even():
    x = bf16_values()
    y = torch.empty(len(x), dtype=torch.bfloat16)
    _convert[(1,)](x, y, len(x), BLOCK=8192)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    bits = bf16.to_bits(x.numpy())
    torch.testing.assert_close(
        torch.from_numpy(bf16.from_bits(bits)), x.bfloat16().float(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("op", ["add", "mul", "max", "where", "negated"])
def test_bf16_arithmetic(op):
    a, b = torch.randn(2, 256).bfloat16()
    c = torch.empty_like(a)
    _arithmetic[(1,)](a, b, c, OP=op, BLOCK=256)
    expected = {
        "add": a + b,
        "mul": a * b,
        "max": torch.maximum(a, b),
        "where": torch.minimum(a, b),
    }
    assert torch.equal(c, expected.get(op, -a.abs()))


def test_dot_is_exact_in_bf16_and_shows_tf32():
    a, b = torch.randn(2, 32, 32)
    exact, errors = a.double() @ b.double(), {}
    for precision in ("ieee", "tf32"):
        c = torch.empty(32, 32)
        _dot[(1,)](a, b, c, PRECISION=precision, BLOCK=32)
        errors[precision] = (c - exact).norm() / exact.norm()
    assert errors["ieee"] < 1e-6 < 1e-4 < errors["tf32"] < 1e-3
    c = torch.empty(32, 32)
    _dot[(1,)](a.bfloat16(), b.bfloat16(), c, PRECISION="ieee", BLOCK=32)
    torch.testing.assert_close(c, a.bfloat16().float() @ b.bfloat16().float())


def test_loop_variables_have_the_type_of_their_bounds():
    out = torch.zeros(2, dtype=torch.int64)
    _scalars[(1,)](out, 0.1, 2**33, 2**33 + 1, 2**20)
    assert out[0] == 2**53
    assert out[1:].view(torch.float64).item() == torch.tensor(0.1, dtype=torch.float32).item()
    with pytest.raises(KernelFault, match=f"int32 overflow in multiply: {2**40}"):
        _scalars[(1,)](out, 0.1, 2**20, 2**20 + 1, 2**20)


def test_programs_run_in_a_seeded_order():
    runs = []
    for seed in (0, 0, 1):
        program_order(seed)
        out, count = torch.zeros(12, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        _order[(3, 4)](out, count)
        runs.append(out.tolist())
    assert runs[0] == runs[1] != runs[2]
    assert sorted(runs[0]) == [10 * i + j for i in range(3) for j in range(4)]


def test_grid_that_cuda_does_not_launch():
    out, count = torch.zeros(12, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(KernelFault, match=r"does not launch a grid \(1, 65536, 1\)"):
        _order[(1, 2**16)](out, count)


def test_libdevice_and_inline_assembly():
    x = torch.randn(64)
    y = torch.empty(64)
    _libdevice[(1,)](x, y, BLOCK=64)
    torch.testing.assert_close(y, 2 * x.tanh())


@pytest.mark.parametrize(
    ("tensor", "inside"),
    [
        (torch.empty(3, 4), 12),
        (torch.empty(3, 6)[:, :4], 12),
        (torch.empty(4, 3).t(), 12),
        (torch.empty(1, 4).expand(3, 4), 4),
        (torch.empty(24)[1::2], 12),
        (torch.empty(12).as_strided((3, 6), (3, 1)), 12),
        (torch.empty(7, 1), 7),
    ],
)
def test_a_view_knows_its_elements(tensor, inside):
    """Gaps between rows or elements are outside; where strides overlap, the span counts."""
    import numpy as np

    view = View("x", tensor, tensor.data_ptr())
    at = tensor.data_ptr() + 4 * np.arange(-30, 60)
    assert view.inside(at, 4).sum() == inside
    for index in np.ndindex(*tensor.shape):
        assert view.inside(np.array([tensor[index].data_ptr()]), 4).all()


def test_manifest_entry():
    """What Triton compiles into the code: types, alignment, ones and None as constants."""
    x = torch.empty(65, dtype=torch.bfloat16)[1:]
    kernel = SimpleNamespace(fn=_convert.fn, kwargs={}, arg_names=_convert.arg_names)
    before = len(launches.recorded())
    arguments = {"X": x, "Y": None, "N": 1, "BLOCK": 64}
    launches.record(kernel, arguments, {"num_warps": 4, "num_stages": None})
    with launches.paused():
        launches.record(kernel, arguments | {"N": 17}, {})
    (entry,) = launches.recorded()[before:]
    launches._entries.popitem()
    assert entry["signature"] == {
        "X": "*bf16",
        "Y": "constexpr",
        "N": "constexpr",
        "BLOCK": "constexpr",
    }
    assert entry["constants"] == {"Y": None, "N": 1, "BLOCK": 64}
    assert (entry["aligned"], entry["small"], entry["options"]) == ([], ["X"], {"num_warps": 4})


def test_types_have_triton_names():
    tensors = {"*i64": torch.int64, "*i1": torch.bool, "*u8": torch.uint8, "*fp64": torch.float64}
    for name, dtype in tensors.items():
        assert launches._type(torch.empty(1, dtype=dtype)) == name
    assert [launches._type(v) for v in (2, 2**40, 2**63, 0.5, True)] == [
        "i32",
        "i64",
        "u64",
        "fp32",
        "u1",
    ]
    assert launches._type([]) == "unsupported list"
