"""poly_norm beyond the generic suite: the paper's formula, relations, range, the module."""

import copy
import importlib
import pickle

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import PolyNorm, poly_norm

# the name of the submodule is also that of its function
poly_norm_module = importlib.import_module("liger_norms.poly_norm")

KERNELS = use_kernels(torch.empty(0, device=device()))


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def inputs(M, N, dtype=torch.float32):
    """x, weight, bias, dy."""
    shapes = ((M, N), (3,), (1,), (M, N))
    return [new(dtype, i).normal(*shape) for i, shape in enumerate(shapes)]


def backward(x, weight, bias, dy, eps=1e-6):
    """y, dx, dw, db."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = poly_norm(*leaves, eps)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def paper(x, weight, bias, eps=1e-6):
    """The formula, term by term, in the dtype of its arguments."""

    def norm(u):
        return u / torch.sqrt(u.pow(2).mean(-1, keepdim=True) + eps)

    return weight[0] * norm(x**3) + weight[1] * norm(x**2) + weight[2] * norm(x) + bias


def exact(x, weight, bias, dy, eps=1e-6):
    """y, dx, dw, db in fp64."""
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = paper(*leaves, eps)
    return y.detach(), *torch.autograd.grad(y, leaves, dy.double())


@pytest.mark.parametrize("N", [1, 77, 1000])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_is_the_papers_formula(N, eps):
    case = inputs(6, N)
    for a, b in zip(backward(*case, eps), exact(*case, eps), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-5)


def test_order_of_the_weights():
    """Highest power first, in y and in the gradient."""
    x, _, _, dy = inputs(4, 100)
    bias, basis = torch.zeros(1, device=x.device), torch.eye(3, device=x.device)
    _, _, dw, _ = backward(x, basis[0], bias, dy)
    for weight, power, d in zip(basis, (3, 2, 1), dw, strict=True):
        u = x.double() ** power
        term = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 1e-6)
        y = poly_norm(x, weight, bias)
        torch.testing.assert_close(y.double(), term, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(d.double(), (dy.double() * term).sum(), rtol=1e-5, atol=1e-4)


def test_first_power_is_rms_norm():
    x = new().normal(5, 130)
    weight = torch.tensor([0.0, 0.0, 1.0], device=x.device)
    expected = torch.nn.functional.rms_norm(x, (130,), None, 1e-6)
    y = poly_norm(x, weight, torch.zeros(1, device=x.device))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_row_scale_cancels_without_eps():
    """poly_norm(c x) = poly_norm(x), dx(c x) = dx(x) / c, to the bit where c is a power of 2."""
    x, weight, bias, dy = inputs(6, 200)
    scale = torch.tensor([1.0, 2.0, 0.25, 64.0, 2.0**-12, 8.0], device=device())[:, None]
    y, dx, dw, db = backward(x, weight, bias, dy, eps=0.0)
    y_c, dx_c, dw_c, db_c = backward(x * scale, weight, bias, dy, eps=0.0)
    for a, b in ((y, y_c), (dx, dx_c * scale), (dw, dw_c), (db, db_c)):
        assert same_bits(a, b)
    # degree 0: the gradient is orthogonal to x
    along = (dx * x).double().sum(-1) / (dx.double().norm(dim=-1) * x.double().norm(dim=-1))
    assert along.abs().max() < 1e-6


def test_sign_moves_to_the_odd_powers():
    """poly_norm(-x, w) = poly_norm(x, w'), w' with the weights of x^3 and x negated."""
    x, weight, bias, dy = inputs(5, 150)
    sign = torch.tensor([-1.0, 1.0, -1.0], device=device())
    y, dx, dw, db = backward(x, weight * sign, bias, dy)
    y_m, dx_m, dw_m, db_m = backward(-x, weight, bias, dy)
    for a, b in ((y, y_m), (dx, -dx_m), (dw, dw_m * sign), (db, db_m)):
        assert same_bits(a + 0.0, b + 0.0)


def test_linear_in_weight_and_bias():
    """sum(dy * y) = w . dw + b * db; powers of two go through to the bit."""
    x, weight, bias, dy = inputs(7, 120)
    y, dx, dw, db = backward(x, weight, bias, dy)
    total = (weight * dw).double().sum() + (bias * db).double().sum()
    torch.testing.assert_close((dy.double() * y.double()).sum(), total, rtol=1e-5, atol=1e-4)
    twice = backward(x, 2 * weight, 2 * bias, dy)
    for a, b in zip((2 * y, 2 * dx, dw, db), twice, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("scale", [100.0, 1.0, 3e-3], ids=["large", "one", "small"])
def test_powers_have_the_digits_and_the_range_of_fp32(dtype, scale):
    """x^3 and its square overflow or underflow in fp16 and lose digits in bf16; one rounding of the
    exact result remains.
    """
    x, weight, bias, dy = inputs(8, 256, dtype)
    x, dy = x * scale, (dy * min(scale, 1.0)).to(dtype)
    y, dx, dw, _ = backward(x, weight, bias, dy, eps=1e-20)
    y_exact, dx_exact, dw_exact, _ = exact(x, weight, bias, dy, eps=1e-20)
    eps = torch.finfo(dtype).eps
    # half a step of rounding, and what fp32 leaves where terms cancel; fp16 is subnormal below 6e-5
    floor = 1e-6 if dtype == torch.bfloat16 else 6e-8
    for a, b in ((y, y_exact), (dx, dx_exact)):
        assert ((a.double() - b).abs() <= 0.5 * eps * b.abs() + 1e-6 * b.abs().max() + floor).all()
    torch.testing.assert_close(dw.double(), dw_exact, rtol=eps, atol=1e-3)


def test_zero_row():
    """y = b and dx = dy * w[2] / sqrt(eps); no other row notices."""
    x, weight, bias, dy = inputs(3, 40)
    x[1] = 0.0
    y, dx, dw, _ = backward(x, weight, bias, dy)
    assert (y[1] == bias).all()
    torch.testing.assert_close(dx[1], dy[1] * weight[2] * 1e3, rtol=1e-5, atol=0)
    others = backward(x[::2], weight, bias, dy[::2])
    assert same_bits(y[::2], others[0])
    assert same_bits(dx[::2], others[1])
    torch.testing.assert_close(dw, others[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_row_stays_in_its_row(bad):
    x, weight, bias, dy = inputs(7, 50)
    y, dx, _, db = backward(x, weight, bias, dy)
    others = torch.arange(7, device=x.device) != 2
    x[2, 3] = bad
    y_bad, dx_bad, dw_bad, db_bad = backward(x, weight, bias, dy)
    assert same_bits(y[others], y_bad[others])
    assert same_bits(dx[others], dx_bad[others])
    assert y_bad[2, 3].isnan()
    assert dx_bad[2].isnan().any()
    assert dw_bad.isnan().all()
    assert same_bits(db, db_bad)


def test_permutations():
    """Rows move with their bits, columns up to rounding."""
    x, weight, bias, dy = inputs(9, 130)
    y, dx, dw, db = backward(x, weight, bias, dy)
    rows, cols = torch.randperm(9, device=x.device), torch.randperm(130, device=x.device)
    y_r, dx_r, *sums = backward(x[rows], weight, bias, dy[rows])
    assert same_bits(y[rows], y_r)
    assert same_bits(dx[rows], dx_r)
    moved = backward(x[:, cols], weight, bias, dy[:, cols])
    pairs = (
        (dw, sums[0]),
        (db, sums[1]),
        *zip((y[:, cols], dx[:, cols], dw, db), moved, strict=True),
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_parameter_gradients_add_over_batches():
    x, weight, bias, dy = inputs(40, 65)
    whole = backward(x, weight, bias, dy)[2:]
    cuts = ((0, 1), (1, 30), (30, 30), (30, 40))
    parts = [backward(x[a:b], weight, bias, dy[a:b])[2:] for a, b in cuts]
    for total, *terms in zip(whole, *parts, strict=True):
        torch.testing.assert_close(total, sum(terms), rtol=1e-5, atol=3e-5)


def test_frozen_parameters_cost_no_sum(monkeypatch):
    if not KERNELS:
        pytest.skip("without kernels autograd itself leaves the gradients out")
    sums = []
    original = poly_norm_module.sum_partials
    monkeypatch.setattr(poly_norm_module, "sum_partials", lambda *a: sums.append(a) or original(*a))
    x, weight, bias, dy = inputs(4, 32)
    poly_norm(x.requires_grad_(), weight, bias).backward(dy)
    assert not sums
    poly_norm(x.detach(), weight.requires_grad_(), bias).backward(dy)
    assert len(sums) == 1


def test_bias_without_a_dimension():
    """As in a state dict of the Liger Kernel."""
    x, weight, bias, dy = inputs(4, 50)
    for a, b in zip(backward(x, weight, bias, dy), backward(x, weight, bias[0], dy), strict=True):
        assert same_bits(a.flatten(), b.flatten())
    assert backward(x, weight, bias[0], dy)[3].shape == ()


def test_module_is_the_function():
    module = PolyNorm(1e-5, device=device())
    x = new().normal(2, 3, 48)
    plain = paper(x, torch.ones(3, device=device()) / 3, 0.0, 1e-5)
    torch.testing.assert_close(module(x), plain, rtol=1e-5, atol=1e-6)
    assert [(n, tuple(p.shape)) for n, p in module.named_parameters()] == [
        ("weight", (3,)),
        ("bias", (1,)),
    ]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    expected = poly_norm(x, module.weight, module.bias, 1e-5)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x), expected)
        assert repr(twin) == "PolyNorm(eps=1e-05)"
    fresh = PolyNorm(1e-5, device=device())
    fresh.load_state_dict(module.state_dict())
    assert same_bits(fresh(x), expected)
    fresh.reset_parameters()
    torch.testing.assert_close(fresh(x), plain, rtol=1e-5, atol=1e-6)
    assert PolyNorm(device="meta", dtype=torch.bfloat16).weight.dtype == torch.bfloat16
