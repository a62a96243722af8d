"""layer_norm beyond the generic suite: torch's own, large means, relations, the module."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import LayerNorm, layer_norm


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def backward(op, *tensors, dy, **options):
    """The output and the gradients of all tensors."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = op(*leaves, **options)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def nemotron(x, weight, bias, eps):
    """NemotronLayerNorm1P.forward of transformers."""
    return F.layer_norm(x, x.shape[-1:], weight + 1, bias, eps)


def cohere(x, weight, eps):
    """CohereLayerNorm.forward of transformers."""
    dtype, x = x.dtype, x.to(torch.float32)
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (weight.to(torch.float32) * ((x - mean) * torch.rsqrt(variance + eps))).to(dtype)


def test_equals_transformers():
    x, weight, bias = new().normal(5, 96), new(seed=1).normal(96), new(seed=2).normal(96)
    y = layer_norm(x, weight, bias, 1e-5, offset=1.0)
    torch.testing.assert_close(y, nemotron(x, weight, bias, 1e-5), rtol=1e-5, atol=1e-6)
    x, weight = x.bfloat16(), weight.bfloat16()
    ours, theirs = layer_norm(x, weight, eps=1e-5), cohere(x, weight, 1e-5)
    assert (ours != theirs).float().mean() < 0.01
    torch.testing.assert_close(ours, theirs, rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("width", [200, 70_001], ids=["one tile", "several tiles"])
@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_large_mean(mean, width):
    """E[x^2] - E[x]^2 would lose every digit of the variance here; centred values lose none."""
    x, weight = new().normal(3, width, mean=mean), new(seed=1).normal(width)
    bias, dy = new(seed=2).normal(width), new(seed=3).normal(3, width)
    ours = backward(layer_norm, x, weight, bias, dy=dy)
    torchs = backward(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), x, weight, bias, dy=dy)
    exact = backward(
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        x.double(), weight.double(), bias.double(), dy=dy.double(),
    )  # fmt: skip
    for a, b, truth in zip(ours, torchs, exact, strict=True):
        error, eager = ((t - truth).norm() / truth.norm() for t in (a, b))
        assert error <= 2 * eager + 1e-6, f"{error:.2e}, torch {eager:.2e}"


@pytest.mark.parametrize("tiles", [1, 3, 4, 5, 6])
def test_rows_beside_what_registers_hold(tiles):
    """A tile of fp64 has 2048 columns; nine rows are several tiles of several programs."""
    N = 2048 * tiles - 7
    x, weight, bias = new(torch.float64).normal(9, N), new(seed=1).normal(N), new(seed=2).normal(N)
    weight, bias, dy = weight.double(), bias.double(), new(torch.float64, 3).normal(9, N)
    ours = backward(layer_norm, x, weight, bias, dy=dy)
    exact = backward(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), x, weight, bias, dy=dy)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_shift_and_scale_cancel():
    """layer_norm(c x + d) = layer_norm(x); gradients are orthogonal to 1 and to x."""
    x, weight, dy = new().normal(6, 130), new(seed=1).normal(130), new(seed=2).normal(6, 130)
    y, dx, _ = backward(lambda x, w: layer_norm(x, w, eps=0.0), x, weight, dy=dy)
    moved = layer_norm(4 * x + 2, weight, eps=0.0)
    torch.testing.assert_close(moved, y, rtol=1e-4, atol=1e-5)
    assert dx.double().sum(-1).abs().max() < 1e-4
    assert (dx * x).double().sum(-1).abs().max() < 1e-3


def test_a_bias_needs_no_weight():
    x, bias, dy = new().normal(3, 40), new(seed=1).normal(40), new(seed=2).normal(3, 40)
    ours = backward(lambda x, b: layer_norm(x, None, b), x, bias, dy=dy)
    torchs = backward(lambda x, b: F.layer_norm(x, (40,), None, b), x, bias, dy=dy)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_constant_row():
    """Variance 0: y is the bias, gradients stay finite."""
    x, weight, bias = torch.full((2, 64), 7.0, device=device()), new().normal(64), new().normal(64)
    y, dx, dw, db = backward(layer_norm, x, weight, bias, dy=new(seed=1).normal(2, 64))
    assert same_bits(y, bias.expand(2, 64))
    assert dx.isfinite().all()
    assert same_bits(dw, torch.zeros_like(dw))
    assert db.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"offset": 1.0}, {"bias": False}], ids=str)
def test_module(options):
    module = LayerNorm(48, device=device(), **options)
    x = new().normal(2, 3, 48)
    # a fresh module scales by 1, with any offset
    torch.testing.assert_close(module(x), F.layer_norm(x, (48,)), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        module.weight.normal_()
    expected = layer_norm(x, module.weight, module.bias, offset=module.offset)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x), expected)
        assert repr(twin) == repr(module)
    parent = torch.nn.LayerNorm(48, bias=module.bias is not None, device=device())
    parent.load_state_dict(module.state_dict())
    module.load_state_dict(parent.state_dict())
    assert isinstance(module, torch.nn.LayerNorm)
    with pytest.raises(ValueError, match="one number"):
        LayerNorm((4, 4))
