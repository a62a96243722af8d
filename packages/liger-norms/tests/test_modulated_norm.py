"""The modulated norms: every way in which scale and shift spread over x."""

import copy

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import (
    ModulatedLayerNorm,
    ModulatedRMSNorm,
    layer_norm,
    modulated_layer_norm,
    modulated_rms_norm,
    rms_norm,
)

PAIRS = [(modulated_rms_norm, rms_norm), (modulated_layer_norm, layer_norm)]
IDS = ["rms", "layer"]


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


@pytest.mark.parametrize(("modulated", "norm"), PAIRS, ids=IDS)
@pytest.mark.parametrize(
    "shape",
    [(64,), (3, 64), (3, 1, 64), (1, 1, 64), (3, 5, 64), (1, 5, 64)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_broadcasts(modulated, norm, shape):
    """One row, a row a sample, a row each, in PyTorch's broadcasting or as [B, N]."""
    tensors = {
        "x": new().normal(3, 5, 64),
        "scale": new(seed=1).normal(*shape),
        "shift": new(seed=2).normal(*shape),
        "weight": new(seed=3).normal(64),
    }
    dy = new(seed=4).normal(3, 5, 64)
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    y = modulated(**leaves)
    ours = torch.autograd.grad(y, list(leaves.values()), dy)
    exact = {n: t.double().requires_grad_() for n, t in tensors.items()}
    scale, shift = (
        t[:, None] if t.shape == (3, 64) else t for t in (exact["scale"], exact["shift"])
    )
    truth = norm(exact["x"], exact["weight"]) * (1 + scale) + shift
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        ours, torch.autograd.grad(truth, list(exact.values()), dy.double()), strict=True
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)


def test_chunks_of_one_modulation():
    """scale and shift are usually slices of what one linear layer gave."""
    x, both = new().normal(2, 3, 40), new(seed=1).normal(2, 80).requires_grad_()
    shift, scale = both.chunk(2, dim=-1)
    modulated_layer_norm(x, scale, shift).sum().backward()
    expected = layer_norm(x).sum(1)
    torch.testing.assert_close(both.grad[:, 40:], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.grad[:, :40], torch.full_like(expected, 3.0))


@pytest.mark.parametrize(("modulated", "norm"), PAIRS, ids=IDS)
def test_zero_modulation_is_the_norm(modulated, norm):
    x, weight = new().normal(2, 3, 33), new(seed=1).normal(33)
    zero = torch.zeros(2, 33, device=x.device)
    torch.testing.assert_close(modulated(x, zero, zero, weight), norm(x, weight))
    assert same_bits(modulated(x, zero), norm(x))


def test_a_sample_keeps_its_bits_alone():
    """Gradients of a sample's scale and shift come from its own rows, in an order of their own."""
    x, dy = new().normal(4, 6, 48), new(seed=1).normal(4, 6, 48)
    scale, shift = (new(seed=i).normal(4, 48) for i in (2, 3))

    def run(part):
        leaves = [t[part].clone().requires_grad_() for t in (x, scale, shift)]
        y = modulated_rms_norm(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, dy[part])

    alone = [run(slice(i, i + 1)) for i in range(4)]
    for whole, parts in zip(run(slice(None)), zip(*alone, strict=True), strict=True):
        assert same_bits(whole, torch.cat(parts))


@pytest.mark.parametrize("kind", [ModulatedRMSNorm, ModulatedLayerNorm])
def test_module(kind):
    module = kind(32, elementwise_affine=False, device=device())
    assert module.state_dict() == {}
    x, scale, shift = new().normal(2, 4, 32), new(seed=1).normal(2, 32), new(seed=2).normal(2, 32)
    function = modulated_rms_norm if kind is ModulatedRMSNorm else modulated_layer_norm
    assert same_bits(copy.deepcopy(module)(x, scale, shift), function(x, scale, shift))
    names = ["weight"] if kind is ModulatedRMSNorm else ["weight", "bias"]
    assert [name for name, _ in kind(32).named_parameters()] == names


def test_a_sample_has_its_bits_in_any_batch():
    """Its rows, enough for several programs, are summed alike whatever the others are."""
    inputs = [new().normal(3, 20_000, 8), *(new(seed=i).normal(3, 8) for i in (1, 2))]
    dy = new(seed=3).normal(3, 20_000, 8)

    def gradients(samples):
        leaves = [t[samples].clone().requires_grad_() for t in inputs]
        return torch.autograd.grad(modulated_layer_norm(*leaves), leaves, dy[samples])

    for whole, alone in zip(gradients(slice(3)), gradients(slice(1, 2)), strict=True):
        assert torch.equal(whole[1:2], alone)
