"""rms_norm beyond the generic suite: parity with transformers, relations, the module."""

import copy
import importlib
import pickle

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import RMSNorm, rms_norm

row_norm = importlib.import_module("liger_norms.row_norm")

KERNELS = use_kernels(torch.empty(0, device=device()))
OFFSETS_AND_CASTS = [(0.0, "after"), (1.0, "after"), (0.0, "before")]


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def backward(x, weight, dy, **options):
    """y, dx, dw."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = rms_norm(x, weight, **options)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy)


def llama(x, weight, eps):
    """LlamaRMSNorm.forward of transformers."""
    dtype, x = x.dtype, x.to(torch.float32)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return weight * x.to(dtype)


def gemma(x, weight, eps):
    """GemmaRMSNorm.forward of transformers."""
    y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return (y * (1.0 + weight.float())).type_as(x)


def olmo(x, weight, eps):
    """Olmo2RMSNorm.forward of transformers."""
    dtype, x = x.dtype, x.to(torch.float32)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * x).to(dtype)


def ulps(a, b):
    """Distance of bf16 numbers in representable steps."""
    bits = (t.view(torch.int16).int() for t in (a, b))
    steps = [torch.where(i < 0, -(i & 0x7FFF), i) for i in bits]
    return (steps[0] - steps[1]).abs()


@pytest.mark.parametrize(
    ("model", "options"),
    [(llama, {"cast": "before"}), (gemma, {"offset": 1.0}), (olmo, {})],
    ids=["llama", "gemma", "olmo"],
)
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_equals_transformers_in_bf16(model, options, weight_dtype):
    """A kernel sums in another order: 1 ulp, in the few elements next to a rounding boundary."""
    x = new(torch.bfloat16).normal(12, 1024)
    weight = new(weight_dtype, seed=1).normal(1024)
    y, expected = rms_norm(x, weight, 1e-5, **options), model(x, weight, 1e-5)
    assert y.dtype == expected.dtype
    if not KERNELS:
        assert same_bits(y, expected)
    elif y.dtype == torch.float32:
        # bf16 times fp32: a step of xhat is 2^-7 at most
        assert ((y - expected).abs() > 1e-6 * expected.abs()).float().mean() < 1e-3
        assert ((y - expected).abs() <= 2.0**-7 * expected.abs()).all()
    else:
        steps = ulps(y, expected)
        assert steps.max() <= 1
        assert (steps > 0).float().mean() < 1e-3


def test_weight_gradient_takes_the_rounded_xhat():
    """With one row and dy = 1, dw is xhat, rounded to bf16 where the weight multiplies that."""
    x, weight = new(torch.bfloat16).normal(1, 300), new().normal(300)
    xhat = rms_norm(x.float()[0])
    for cast, dy in (("before", weight.new_ones(1, 300)), ("after", x.new_ones(1, 300))):
        _, _, dw = backward(x, weight, dy, cast=cast)
        expected = xhat.bfloat16().float() if cast == "before" else xhat
        assert ((dw - expected).abs() > 1e-6 * expected.abs()).float().mean() < 0.01, cast


@pytest.mark.parametrize(("offset", "cast"), OFFSETS_AND_CASTS)
def test_row_scale_cancels_without_eps(offset, cast):
    """rms_norm(c x) = rms_norm(x), and dx(c x) = dx(x) / c, to the bit where c is a power of 4."""
    x, weight, dy = new().normal(6, 200), new(seed=1).normal(200), new(seed=2).normal(6, 200)
    scale = torch.tensor([1.0, 4.0, 0.25, 1024.0, 2.0**-20, 64.0], device=device())[:, None]
    y, dx, dw = backward(x, weight, dy, eps=0.0, offset=offset, cast=cast)
    y_c, dx_c, dw_c = backward(x * scale, weight, dy, eps=0.0, offset=offset, cast=cast)
    assert same_bits(y, y_c)
    assert same_bits(dx, dx_c * scale)
    assert same_bits(dw, dw_c)
    # degree 0: the gradient is orthogonal to x
    along = (dx * x).double().sum(-1) / (dx.double().norm(dim=-1) * x.double().norm(dim=-1))
    assert along.abs().max() < 1e-6


@pytest.mark.parametrize(("offset", "cast"), OFFSETS_AND_CASTS)
def test_permutations(offset, cast):
    """Rows move with their bits, columns (of x and of the weight) up to rounding."""
    x, weight, dy = new().normal(9, 130), new(seed=1).normal(130), new(seed=2).normal(9, 130)
    y, dx, dw = backward(x, weight, dy, offset=offset, cast=cast)
    rows, cols = torch.randperm(9, device=x.device), torch.randperm(130, device=x.device)
    y_r, dx_r, dw_r = backward(x[rows], weight, dy[rows], offset=offset, cast=cast)
    assert same_bits(y[rows], y_r)
    assert same_bits(dx[rows], dx_r)
    torch.testing.assert_close(dw, dw_r, rtol=1e-5, atol=1e-5)
    moved = backward(x[:, cols], weight[cols], dy[:, cols], offset=offset, cast=cast)
    for a, b in zip((y[:, cols], dx[:, cols], dw[cols]), moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_weight_gradient_adds_over_batches():
    x, weight, dy = new().normal(40, 65), new(seed=1).normal(65), new(seed=2).normal(40, 65)
    whole = backward(x, weight, dy)[2]
    parts = [backward(x[a:b], weight, dy[a:b])[2] for a, b in ((0, 1), (1, 30), (30, 30), (30, 40))]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-5, atol=1e-5)


def test_offset_belongs_to_the_weight():
    x, weight = new().normal(3, 100), new(seed=1).normal(100)
    assert same_bits(rms_norm(x, weight, offset=1.0), rms_norm(x, weight + 1.0))
    assert same_bits(rms_norm(x), rms_norm(x, torch.ones_like(weight)))
    assert same_bits(rms_norm(x), rms_norm(x, torch.zeros_like(weight), offset=1.0))


def test_residual_branch_made_before_the_norm():
    """Neither the residual nor the gradient that its addition shares with the norm is written."""
    x, weight, dy = new().normal(4, 96), new(seed=1).normal(96), new(seed=2).normal(4, 96)
    leaf, kept = x.clone().requires_grad_(), dy.clone()
    h = leaf * 2
    (h * h.detach() + h + rms_norm(h, weight)).backward(dy)
    exact = x.double().requires_grad_()
    h = exact * 2
    normed = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    (h * h.detach() + h + normed).backward(dy.double())
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    assert same_bits(dy, kept)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_row_stays_in_its_row(bad):
    x, weight, dy = new().normal(7, 50), new(seed=1).normal(50), new(seed=2).normal(7, 50)
    y, dx, _ = backward(x, weight, dy)
    others = torch.arange(7, device=x.device) != 2
    x[2, 3] = bad
    y_bad, dx_bad, dw_bad = backward(x, weight, dy)
    assert same_bits(y[others], y_bad[others])
    assert same_bits(dx[others], dx_bad[others])
    assert y_bad[2, 3].isnan()
    assert dx_bad[2].isnan().any()
    assert dw_bad.isnan().any()


def test_zero_row():
    """y = 0 and dx = dy * weight / sqrt(eps), finite; no row of its batch notices."""
    x, weight, dy = new().normal(3, 40), new(seed=1).normal(40), new(seed=2).normal(3, 40)
    x[1] = 0.0
    y, dx, dw = backward(x, weight, dy, eps=1e-6)
    assert (y[1] == 0).all()
    torch.testing.assert_close(dx[1], dy[1] * weight * 1e3, rtol=1e-5, atol=0)
    torch.testing.assert_close(dw, backward(x[::2], weight, dy[::2])[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [3e4, 1e-4], ids=["large", "small"])
def test_squares_beyond_the_range_of_fp16(scale):
    """x^2 overflows or underflows in fp16; the statistics are fp32."""
    x = (new().uniform(4, 128, low=-1.0) * scale).half()
    weight = new(torch.float16, 1).normal(128)
    dy = new(torch.float16, 2).normal(4, 128) * (scale / 8)
    y, dx, _ = backward(x, weight, dy, eps=0.0)
    exact = x.double().requires_grad_()
    truth = torch.nn.functional.rms_norm(exact, (128,), weight.double(), 0.0)
    truth.backward(dy.double())
    torch.testing.assert_close(y.double(), truth.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dx.double(), exact.grad, rtol=1e-2, atol=1e-3)


def test_frozen_weight_costs_no_sum(monkeypatch):
    if not KERNELS:
        pytest.skip("without kernels autograd itself leaves the gradient out")
    sums = []
    original = row_norm.sum_partials
    monkeypatch.setattr(row_norm, "sum_partials", lambda *a: sums.append(a) or original(*a))
    x, weight = new().normal(400, 32).requires_grad_(), new(seed=1).normal(32)
    rms_norm(x, weight).sum().backward()
    assert not sums
    rms_norm(x, weight.requires_grad_()).sum().backward()
    assert len(sums) == 1


@pytest.mark.parametrize(
    "options", [{}, {"offset": 1.0}, {"cast": "before"}, {"eps": None}], ids=str
)
def test_module_is_the_function(options):
    module = RMSNorm(48, device=device(), **options)
    x = new().normal(2, 3, 48)
    # a fresh module scales by 1, with any offset
    plain = torch.nn.functional.rms_norm(x, (48,), None, module.eps)
    torch.testing.assert_close(module(x), plain, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        module.weight.normal_()
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    expected = rms_norm(x, module.weight, eps, offset=module.offset, cast=module.cast)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x), expected)
        assert repr(twin) == repr(module)
        assert f"cast={module.cast!r}" in repr(twin)
    assert copy.deepcopy(module).weight is not module.weight


def test_module_and_its_torch_parent_exchange_state():
    ours, parent = RMSNorm(16, device=device()), torch.nn.RMSNorm(16, device=device())
    with torch.no_grad():
        parent.weight.normal_()
    ours.load_state_dict(parent.state_dict())
    x = new().normal(5, 16)
    torch.testing.assert_close(
        ours(x), torch.nn.functional.rms_norm(x, (16,), parent.weight, 1e-6), rtol=1e-5, atol=1e-6
    )
    parent.load_state_dict(ours.state_dict())
    assert isinstance(ours, torch.nn.RMSNorm)
    assert [n for n, _ in ours.named_parameters()] == ["weight"]
    assert RMSNorm(16, elementwise_affine=False).state_dict() == {}
    with pytest.raises(ValueError, match="one number"):
        RMSNorm((4, 4))


@pytest.mark.parametrize(
    ("N", "tiles"),
    [(33, (1, 64)), (4096, (1, 4096)), (5120, (5, 1024)), (6144, (3, 2048)), (14336, (7, 2048))],
)
def test_row_is_cut_into_few_equal_tiles(N, tiles):
    assert row_norm._cut(N) == tiles
