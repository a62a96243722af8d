"""relu_squared beyond the generic suite: bits, special values, layouts, the module."""

import copy
import pickle

import pytest
import torch
from liger_activations import ReLUSquared, glu, relu_squared
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device

KERNELS = use_kernels(torch.empty(0, device=device()))
NAN, INF = float("nan"), float("inf")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def formula(x):
    """The squared ReLU of transformers."""
    return torch.square(torch.nn.functional.relu(x))


def passes(function, x, dy):
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


@each_dtype
def test_bits_of_transformers(dtype):
    """A square and a product are rounded once either way; doubling is exact."""
    x, dy = new(dtype).normal(7, 300, std=3.0), new(dtype, 1).normal(7, 300)
    y, dx = passes(relu_squared, x, dy)
    expected, expected_dx = passes(formula, x, dy)
    assert same_bits(y, expected)
    if dtype == torch.float32 and KERNELS:
        # 2 x dy in one rounding or two
        torch.testing.assert_close(dx, expected_dx, rtol=2e-7, atol=0)
    else:
        torch.testing.assert_close(dx, expected_dx, rtol=torch.finfo(dtype).eps, atol=0)


def test_special_values():
    """As torch: a NaN stays one; a negative x stops even a bad gradient."""
    special = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1e30, -1e30, 1e-30, 2.0, -2.0])
    x, dy = (t.flatten() for t in torch.meshgrid(special, special, indexing="ij"))
    x, dy = x.to(device()), dy.to(device())
    for ours, expected in zip(passes(relu_squared, x, dy), passes(formula, x, dy), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_any_shape_and_strides():
    """Scalars, four dimensions, channels last, every other element; results are contiguous."""
    flat = new().normal(2 * 3 * 4 * 6)
    images = flat.view(2, 3, 4, 6).to(memory_format=torch.channels_last)
    for x in (flat[0], flat.view(2, 3, 4, 6), images, flat[::2], flat.view(12, 12).t()):
        dy = torch.ones_like(x)
        for a, b in zip(passes(relu_squared, x, dy), passes(formula, x, dy), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
            assert a.is_contiguous() or not KERNELS


def test_it_is_the_gated_unit_of_ones():
    x, dy = new().normal(5, 200), new(seed=1).normal(5, 200)
    y, dx = passes(relu_squared, x, dy)
    gated, dgate = passes(lambda x: glu(x, torch.ones_like(x), "relu_squared"), x, dy)
    assert torch.equal(y, gated)
    torch.testing.assert_close(dx, dgate, rtol=3e-7, atol=0)


def test_module_is_the_function():
    x = new().normal(2, 3, 30)
    module = ReLUSquared()
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x), relu_squared(x))
        assert repr(twin) == "ReLUSquared()"
        assert twin.state_dict() == {}
