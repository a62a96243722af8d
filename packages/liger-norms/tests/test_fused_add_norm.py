"""The fused residual additions: the same as separate operations, in every use of the sum."""

import copy

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import (
    FusedAddLayerNorm,
    FusedAddRMSNorm,
    fused_add_layer_norm,
    fused_add_rms_norm,
    layer_norm,
    rms_norm,
)

PAIRS = [(fused_add_rms_norm, rms_norm), (fused_add_layer_norm, layer_norm)]
IDS = ["rms", "layer"]


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


@pytest.mark.parametrize(("fused", "norm"), PAIRS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_separate_operations(fused, norm, dtype):
    """The sum is rounded to its dtype before the norm reads it."""
    x, residual = new(dtype).normal(7, 256), new(dtype, 1).normal(7, 256)
    w = new(dtype, 2).normal(256)
    y, s = fused(x, residual, w)
    assert same_bits(s, x + residual)
    assert same_bits(y, norm(x + residual, w))


@pytest.mark.parametrize(("fused", "norm"), PAIRS, ids=IDS)
@pytest.mark.parametrize("used", ["both", "norm", "sum"])
def test_gradients_whichever_result_is_used(fused, norm, used):
    x, residual, w = new().normal(4, 96), new(seed=1).normal(4, 96), new(seed=2).normal(96)
    dy, ds = new(seed=3).normal(4, 96), new(seed=4).normal(4, 96)

    def total(y, s):
        return (y * dy if used != "sum" else 0) + (s * ds if used != "norm" else 0)

    leaves = [t.clone().requires_grad_() for t in (x, residual, w)]
    total(*fused(*leaves)).sum().backward()
    exact = [t.double().requires_grad_() for t in (x, residual, w)]
    s = exact[0] + exact[1]
    total(norm(s, exact[2]), s).sum().backward()
    for ours, truth in zip(leaves, exact, strict=True):
        if ours is leaves[2] and used == "sum":
            assert ours.grad is None or not ours.grad.any()
            continue
        torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=1e-5, atol=1e-5)


def test_a_stream_of_layers():
    """s of one layer is the residual of the next; x and residual may be one tensor."""
    x = new().normal(5, 64)
    weights = [new(seed=i + 1).normal(64) for i in range(3)]

    def run(x, weights, add):
        stream, h = x, x
        for w in weights:
            h, stream = add(h, stream, w)
            h = h * 0.5
        return (h + stream).square().mean()

    def separate(h, stream, w):
        s = h + stream
        return rms_norm(s, w), s

    results = []
    for add, dtype in ((fused_add_rms_norm, torch.float32), (separate, torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *weights)]
        results.append(torch.autograd.grad(run(leaves[0], leaves[1:], add), leaves))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-6)


def test_gradients_of_x_and_residual_may_be_accumulated():
    """They are one tensor until somebody adds to one of them: the other must not change."""
    x, residual = (new(seed=i).normal(3, 32).requires_grad_() for i in range(2))
    for _ in range(2):
        y, s = fused_add_rms_norm(x, residual)
        (y + s).sum().backward()
    once = x.grad / 2
    torch.testing.assert_close(residual.grad, 2 * once)
    x.grad.zero_()
    torch.testing.assert_close(residual.grad, 2 * once)


@pytest.mark.parametrize(
    ("kind", "parent"),
    [(FusedAddRMSNorm, torch.nn.RMSNorm), (FusedAddLayerNorm, torch.nn.LayerNorm)],
    ids=IDS,
)
def test_module(kind, parent):
    module = kind(32, device=device())
    plain = parent(32, eps=module.eps, device=device())
    with torch.no_grad():
        module.weight.normal_()
    plain.load_state_dict(module.state_dict())
    x, residual = new().normal(2, 4, 32), new(seed=1).normal(2, 4, 32)
    y, s = copy.deepcopy(module)(x, residual)
    assert same_bits(s, x + residual)
    torch.testing.assert_close(y, plain(x + residual), rtol=1e-5, atol=1e-6)
    assert isinstance(module, parent)
