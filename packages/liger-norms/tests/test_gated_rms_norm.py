"""gated_rms_norm beyond the generic suite: parity with transformers, relations, the module."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import GatedRMSNorm, gated_row_norm, rms_norm
from liger_norms.gated_rms_norm import gated_rms_norm

KERNELS = use_kernels(torch.empty(0, device=device()))
FORMS = {
    "mamba": {"norm_before_gate": False, "cast": "before"},
    "qwen": {"cast": "before"},
    "kimi": {"activation": "sigmoid"},
    "falcon": {"norm_before_gate": False},
}


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def three(*shape, dtype=torch.float32):
    """x, gate, dy."""
    return tuple(new(dtype, seed).normal(*shape) for seed in range(3))


def backward(x, gate, weight, dy, **options):
    """y, dx, dgate, and dw if there is a weight."""
    leaves = [t.detach().requires_grad_() for t in (x, gate, weight) if t is not None]
    y = gated_rms_norm(*leaves, **options)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def mamba(x, gate, weight, eps, group_size):
    """MambaRMSNormGated.forward of transformers; also of Bamba, Granite, Nemotron-H, Zamba2."""
    dtype, x = x.dtype, x.to(torch.float32) * F.silu(gate.to(torch.float32))
    groups = x.view(*x.shape[:-1], -1, group_size)
    groups = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + eps)
    return weight * groups.view(x.shape).to(dtype)


def falcon(x, gate, weight, eps, group_size, norm_before_gate=False):
    """FalconH1RMSNormGated.forward."""
    dtype, shape = x.dtype, x.shape
    if not norm_before_gate:
        x = x * F.silu(gate.to(torch.float32))
    x = x.to(torch.float32).view(*shape[:-1], -1, group_size)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    x = (weight.view(-1, group_size) * x).view(shape)
    if norm_before_gate:
        x = x * F.silu(gate.to(torch.float32))
    return x.to(dtype)


def falcon_norm_first(x, gate, weight, eps, group_size):
    return falcon(x, gate, weight, eps, group_size, norm_before_gate=True)


def qwen(x, gate, weight, eps, group_size, activation=F.silu):
    """Qwen3NextRMSNormGated.forward; also of Qwen3.5 and OLMo-Hybrid."""
    dtype, x = x.dtype, x.to(torch.float32)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return ((weight * x.to(dtype)) * activation(gate.to(torch.float32))).to(dtype)


def qwen_sigmoid(x, gate, weight, eps, group_size):
    """Qwen4ExpTextRMSNormGated.forward with output_gate_type "sigmoid"."""
    return qwen(x, gate, weight, eps, group_size, torch.sigmoid)


def kimi(x, gate, weight, eps, group_size):
    """KimiLinearRMSNormGated.forward; also of GLM-5 and Bailing."""
    dtype, x = x.dtype, x.to(torch.float32)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return (weight.to(torch.float32) * x * torch.sigmoid(gate.to(torch.float32))).to(dtype)


def ulps(a, b):
    """Distance of bf16 numbers in representable steps."""
    bits = (t.view(torch.int16).int() for t in (a, b))
    steps = [torch.where(i < 0, -(i & 0x7FFF), i) for i in bits]
    return (steps[0] - steps[1]).abs()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (mamba, {"group_size": 256, **FORMS["mamba"]}),
        (falcon, {"group_size": 512, **FORMS["falcon"]}),
        (falcon_norm_first, {"group_size": 512}),
        (qwen, FORMS["qwen"]),
        (qwen_sigmoid, {"activation": "sigmoid", **FORMS["qwen"]}),
        (kimi, FORMS["kimi"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_equals_transformers_in_bf16(model, options, weight_dtype):
    """A kernel sums in another order: a step in the few elements next to a rounding boundary, and
    that step of uhat is up to two of the product with the weight.
    """
    x, gate, _ = three(12, 1024, dtype=torch.bfloat16)
    weight = new(weight_dtype, seed=3).normal(1024)
    y = gated_rms_norm(x, gate, weight, 1e-5, **options)
    expected = model(x, gate, weight, 1e-5, options.get("group_size"))
    assert y.dtype == expected.dtype
    if not KERNELS:
        assert same_bits(y, expected)
    elif y.dtype == torch.float32:
        # bf16 times fp32: a step of uhat is 2^-7 at most
        assert ((y - expected).abs() > 1e-6 * expected.abs()).float().mean() < 1e-3
        assert ((y - expected).abs() <= 2.0**-7 * expected.abs()).all()
    else:
        steps = ulps(y, expected)
        assert steps.max() <= (2 if options.get("cast") == "before" else 1)
        assert (steps > 0).float().mean() < 2e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group_size", [40, 8200], ids=["narrow", "wide"])
def test_a_group_is_a_row(form, group_size):
    """Groups of columns have the bits of as many rows."""
    x, gate, dy = three(3, 2 * group_size)
    grouped = backward(x, gate, None, dy, group_size=group_size, **FORMS[form])
    rows = backward(*(t.view(6, -1) for t in (x, gate)), None, dy.view(6, -1), **FORMS[form])
    for a, b in zip(grouped, rows, strict=True):
        assert same_bits(a.view(6, -1), b)


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_the_weight(form):
    """Each group has its own part of the weight and of the weight's gradient."""
    x, gate, dy = three(70, 3 * 32)
    weight = new(seed=3).normal(96)
    _, _, _, dw = backward(x, gate, weight, dy, group_size=32, **FORMS[form])
    for part in (slice(0, 32), slice(32, 64), slice(64, 96)):
        alone = backward(x[:, part], gate[:, part], weight[part], dy[:, part], **FORMS[form])[3]
        torch.testing.assert_close(dw[part], alone, rtol=1e-5, atol=1e-5)


def test_heads():
    """x [B, T, H, D], weight [D]: rows of one head, and a gate that is part of a projection."""
    x, gate, dy = three(2, 3, 4, 64)
    weight = new(seed=3).normal(64)
    wide = torch.cat((gate, dy), dim=-1)
    heads = backward(x, wide[..., :64], weight, dy)
    rows = backward(*(t.reshape(24, 64) for t in (x, gate)), weight, dy.reshape(24, 64))
    for a, b in zip(heads, rows, strict=True):
        assert same_bits(a, b.view(a.shape))


def test_open_gate_is_rms_norm():
    """sigmoid(inf) = 1."""
    x, gate, _ = three(5, 100)
    weight = new(seed=3).normal(100)
    for first in (True, False):
        options = {"activation": "sigmoid", "norm_before_gate": first}
        y = gated_rms_norm(x, torch.full_like(gate, float("inf")), weight, **options)
        torch.testing.assert_close(y, rms_norm(x, weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_orthogonal_to_x(form):
    """Without eps the scale of a group of x changes nothing: sum(dx * x) = 0 over each group."""
    x, gate, dy = three(6, 4, 50)
    shape = {"group_size": 50, "eps": 0.0}
    weight = new(seed=3).normal(200)
    _, dx, _, _ = backward(x.view(6, 200), gate.view(6, 200), weight, dy.view(6, 200),
                           **shape, **FORMS[form])  # fmt: skip
    dx = dx.view(6, 4, 50).double()
    along = (dx * x).sum(-1) / (dx.norm(dim=-1) * x.double().norm(dim=-1))
    assert along.abs().max() < 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [-1e4, -100.0, 100.0, 1e4])
def test_saturated_gate(form, value):
    """Neither exp(-gate) = inf nor 1 - sigmoid = 0 makes a NaN."""
    x, gate, dy = three(3, 64)
    gate[1, 5] = value
    results = backward(x, gate, new(seed=3).normal(64), dy, **FORMS[form])
    assert all(t.isfinite().all() for t in results)
    exact = gate.double()
    slope = torch.autograd.grad(
        (F.silu if form != "kimi" else torch.sigmoid)(exact.requires_grad_()).sum(), exact
    )[0][1, 5]
    assert (results[2][1, 5] == 0) == (abs(slope) < 1e-30)


@pytest.mark.parametrize("form", FORMS)
def test_bad_row_stays_in_its_row(form):
    x, gate, dy = three(7, 50)
    weight = new(seed=3).normal(50)
    good = backward(x, gate, weight, dy, **FORMS[form])[:3]
    others = torch.arange(7, device=x.device) != 2
    x[2, 3] = float("nan")
    bad = backward(x, gate, weight, dy, **FORMS[form])[:3]
    for a, b in zip(good, bad, strict=True):
        assert same_bits(a[others], b[others])
        assert b[2].isnan().any()


def test_squares_beyond_the_range_of_fp16():
    """(x * gate)^2 overflows in fp16; u and its statistics are fp32."""
    x, gate, _ = three(4, 128, dtype=torch.float16)
    x, gate = x * 1e3, gate * 20
    exact = mamba(x.double(), gate.double(), torch.ones(128, device=x.device), 1e-6, 128)
    y = gated_rms_norm(x, gate, norm_before_gate=False)
    torch.testing.assert_close(y.double(), exact.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not KERNELS, reason="autograd saves what PyTorch's operations need")
def test_saves_inputs_and_rstd_only():
    x, gate, _ = three(4, 64)
    weight, saved = new(seed=3).normal(64), []
    leaves = [t.requires_grad_() for t in (x, gate, weight)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        gated_rms_norm(*leaves, group_size=16)
    assert [t.data_ptr() for t in saved[:3]] == [t.data_ptr() for t in leaves]
    assert [t.shape for t in saved[3:]] == [(4, 4)]


@pytest.mark.skipif(not KERNELS, reason="without kernels autograd itself leaves the gradient out")
def test_frozen_weight_costs_no_sum(monkeypatch):
    sums = []
    original = gated_row_norm.sum_partials
    monkeypatch.setattr(gated_row_norm, "sum_partials", lambda *a: sums.append(a) or original(*a))
    x, gate, _ = three(300, 4096)
    weight = new(seed=3).normal(4096)
    gated_rms_norm(x.requires_grad_(), gate, weight).sum().backward()
    assert not sums
    gated_rms_norm(x, gate, weight.requires_grad_()).sum().backward()
    assert len(sums) == 1


@pytest.mark.parametrize("options", [*FORMS.values(), {"group_size": 12}], ids=str)
def test_module_is_the_function(options):
    module = GatedRMSNorm(48, 1e-5, device=device(), **options)
    x, gate, _ = three(2, 3, 48)
    # a fresh module scales by 1
    torch.testing.assert_close(module(x, gate), gated_rms_norm(x, gate, eps=1e-5, **options))
    with torch.no_grad():
        module.weight.normal_()
    expected = gated_rms_norm(x, gate, module.weight, 1e-5, **options)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x, gate), expected)
        assert repr(twin) == repr(module)
        for name, value in options.items():
            assert f"{name}={value!r}" in repr(twin)
    assert copy.deepcopy(module).weight is not module.weight


def test_module_parameters():
    module = GatedRMSNorm(16, device=device(), dtype=torch.bfloat16)
    assert {name: t.dtype for name, t in module.state_dict().items()} == {"weight": torch.bfloat16}
    assert GatedRMSNorm(16, elementwise_affine=False).state_dict() == {}
    with pytest.raises(ValueError, match="one shape"):
        module(torch.ones(3, 16), torch.ones(2, 16))
