"""group_norm beyond the generic suite: stability, parity with torch, relations, the module."""

import copy
import importlib
import pickle

import pytest
import torch
import torch.nn.functional as F
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import GroupNorm, group_norm

# the name of the submodule is also that of its function
group_norm_module = importlib.import_module("liger_norms.group_norm")

KERNELS = use_kernels(torch.empty(0, device=device()))
# a group is a part of a tile, a tile, tiles of its channels, and tiles of several channels each
SIZES = {"small": (5, 6, 50), "tile": (2, 4, 3000), "along": (2, 4, 9001), "rows": (2, 60, 700)}


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def arguments(shape, mean=0.0):
    """x, weight, bias, dy."""
    x, dy = new().normal(*shape, mean=mean), new(seed=3).normal(*shape)
    return x, new(seed=1).normal(shape[1]), new(seed=2).normal(shape[1]), dy


def backward(x, groups, weight, bias, dy, eps=1e-5, op=group_norm):
    """y, dx, and dw and db where there are such."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = op(leaves[0], groups, *leaves[1:], eps=eps)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def error(a, b):
    return ((a.double() - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_mean_far_from_zero(shape):
    """A mean of 1000 standard deviations costs the three digits that x itself has lost to it."""
    x, weight, bias, dy = arguments(shape, mean=1000.0)
    exact = backward(*(t.double() if torch.is_tensor(t) else t for t in (x, 2, weight, bias, dy)))
    torchs = backward(x, 2, weight, bias, dy, op=F.group_norm)
    for ours, theirs, truth in zip(backward(x, 2, weight, bias, dy), torchs, exact, strict=True):
        assert error(ours, truth) < 2e-4
        assert error(ours, truth) < 2 * error(theirs, truth) + 1e-5


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("odd", [slice(0, 40), slice(-40, None)], ids=["first", "last"])
def test_few_elements_far_from_the_others(shape, odd):
    """The shift that the first elements suggest, and parts with other means, cost few digits."""
    x, weight, bias, _ = arguments(shape)
    x[:, :, odd] += 1000.0
    exact = group_norm(x.double(), 2, weight.double(), bias.double())
    assert error(group_norm(x, 2, weight, bias), exact) < 1e-5


@pytest.mark.parametrize("shape", ["along", "rows"])
def test_parts_of_several_tiles(shape, monkeypatch):
    """As programs have them of groups of more than 512 tiles."""
    monkeypatch.setattr(group_norm_module, "_PARTS", 3)
    x, weight, bias, dy = arguments(SIZES[shape], mean=3.0)
    exact = backward(*(t.double() if torch.is_tensor(t) else t for t in (x, 2, weight, bias, dy)))
    for ours, truth in zip(backward(x, 2, weight, bias, dy), exact, strict=True):
        assert error(ours, truth) < 2e-6


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 12), (3, 12, 17), (2, 12, 5, 9), (2, 12, 3, 4, 5)], ids=str)
def test_equals_torch(shape, groups):
    x, weight, bias, dy = arguments(shape)
    ours, torchs = (
        backward(x, groups, weight, bias, dy, op=op) for op in (group_norm, F.group_norm)
    )
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_groups_of_one_element():
    """Nothing but the bias is left of x, and no gradient."""
    x, weight, bias, dy = arguments((4, 6))
    y, dx, dw, db = backward(x, 6, weight, bias, dy)
    assert same_bits(y, bias.expand(4, 6).contiguous())
    assert (dx == 0).all()
    assert (dw == 0).all()
    torch.testing.assert_close(db, dy.sum(0))


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_constant_group(shape):
    """xhat = 0 and dx = (g - mean(g)) / sqrt(eps), finite."""
    x, weight, bias, dy = arguments(shape)
    y, dx, dw, _ = backward(torch.full_like(x, 7.25), 1, weight, bias, dy)
    assert (y == bias[:, None]).all()
    assert (dw == 0).all()
    g = (dy * weight[:, None]).double()
    expected = (g - g.mean((1, 2), keepdim=True)) * 1e-5**-0.5
    torch.testing.assert_close(dx.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_gradient_is_orthogonal(shape):
    """Neither the mean nor, without eps, the scale of a group matters: sum(dx) = sum(dx x) = 0."""
    x, weight, bias, dy = arguments(shape)
    y, dx, _, _ = backward(x, 2, weight, bias, dy, eps=0.0)
    moved, dx_moved, _, _ = backward(x * 4 + 8, 2, weight, bias, dy, eps=0.0)
    torch.testing.assert_close(moved, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dx_moved * 4, dx, rtol=1e-4, atol=1e-4)
    x, dx = (t.view(shape[0], 2, -1).double() for t in (x, dx))
    scale = dx.norm(dim=-1) * x.shape[-1] ** 0.5
    assert (dx.sum(-1) / scale).abs().max() < 1e-6
    assert ((dx * x).sum(-1) / scale).abs().max() < 1e-6


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_samples_keep_their_bits(shape):
    """A sample alone has the bits that it has among others, however its groups are divided."""
    x, weight, bias, dy = arguments(shape)
    y, dx, _, _ = backward(x, 2, weight, bias, dy)
    y_1, dx_1, _, _ = backward(x[1:2], 2, weight, bias, dy[1:2])
    if KERNELS:
        assert same_bits(y[1:2], y_1)
        assert same_bits(dx[1:2], dx_1)
    torch.testing.assert_close(y[1:2], y_1)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_bad_element_stays_in_its_group(shape):
    x, weight, bias, dy = arguments(shape)
    good = backward(x, 2, weight, bias, dy)[:2]
    x[1, 0, 3] = float("nan")
    for a, b in zip(good, backward(x, 2, weight, bias, dy)[:2], strict=True):
        groups_a, groups_b = (t.view(shape[0], 2, -1) for t in (a, b))
        assert groups_b[1, 0].isnan().all()
        groups_b[1, 0] = groups_a[1, 0]
        assert same_bits(groups_a, groups_b)


def test_channels_last():
    x, weight, bias, dy = arguments((2, 6, 5, 9))
    expected = backward(x, 3, weight, bias, dy)
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    results = backward(x, 3, weight, bias, dy)
    assert results[0].is_contiguous()
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_without_weight_or_bias():
    x, weight, bias, dy = arguments((3, 6, 20))
    ones, zeros = torch.ones_like(weight), torch.zeros_like(bias)
    assert same_bits(group_norm(x, 2), group_norm(x, 2, ones, zeros))
    assert same_bits(group_norm(x, 2, bias=bias), group_norm(x, 2, ones, bias))
    plain = backward(x, 2, None, None, dy)
    assert same_bits(plain[1], backward(x, 2, ones, zeros, dy)[1])


@pytest.mark.skipif(not KERNELS, reason="about launches")
def test_frozen_inputs_cost_no_work(monkeypatch):
    """A frozen x takes no second pass, frozen weights take no sums."""
    calls = []
    for name in ("launch", "sum_partials"):
        original = getattr(group_norm_module, name)
        monkeypatch.setattr(
            group_norm_module,
            name,
            lambda *a, _name=name, _original=original, **k: (
                calls.append(_name) or _original(*a, **k)
            ),
        )
    x, weight, bias, _ = arguments(SIZES["along"])
    for grad, expected in (
        ((x,), ["launch"] * 4),
        ((weight,), ["launch"] * 3 + ["sum_partials"]),
        ((x, bias), ["launch"] * 4 + ["sum_partials"]),
    ):
        calls.clear()
        leaves = [t.detach().requires_grad_(any(t is g for g in grad)) for t in (x, weight, bias)]
        group_norm(leaves[0], 2, *leaves[1:]).sum().backward()
        assert calls == expected


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 1e-3}], ids=str)
def test_module_is_its_torch_parent(options):
    ours = GroupNorm(3, 12, device=device(), **options)
    parent = torch.nn.GroupNorm(3, 12, device=device(), **options)
    for tensor in parent.state_dict().values():
        tensor.normal_()
    ours.load_state_dict(parent.state_dict())
    assert isinstance(ours, torch.nn.GroupNorm)
    assert repr(ours) == repr(parent)
    x = new().normal(2, 12, 9)
    torch.testing.assert_close(ours(x), parent(x), rtol=1e-5, atol=1e-5)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert same_bits(twin(x), ours(x))
    parent.load_state_dict(ours.state_dict())
    with pytest.raises(ValueError, match="must divide"):
        ours(x[:, :10])
