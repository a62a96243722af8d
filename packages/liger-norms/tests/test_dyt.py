"""dyt beyond the generic suite: relations, digits at both ends of tanh, missing parameters, the
module.
"""

import copy
import importlib
import itertools
import pickle

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_norms import DyT, dyt

# the name of the submodule is also that of its function
dyt_module = importlib.import_module("liger_norms.dyt")

KERNELS = use_kernels(torch.empty(0, device=device()))
NAMES = ("x", "alpha", "weight", "bias")


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def inputs(M, N, dtype=torch.float32):
    """x, alpha, weight, bias, dy."""
    x, weight, bias, dy = (
        new(dtype, i).normal(*shape) for i, shape in enumerate(((M, N), (N,), (N,), (M, N)))
    )
    return 2 * x, new(dtype, 4).uniform(1, low=0.3, high=0.9), weight, bias, dy


def backward(x, alpha, weight, bias, dy):
    """y and the gradients of what is not None."""
    args = [t if t is None else t.detach().requires_grad_() for t in (x, alpha, weight, bias)]
    y = dyt(*args)
    return y.detach(), *torch.autograd.grad(y, [t for t in args if t is not None], dy)


def exact(x, alpha, weight, bias, dy):
    """The same in fp64, with the slope of tanh as 1 / cosh^2."""
    x, alpha, weight, bias, dy = (
        t if t is None else t.double() for t in (x, alpha, weight, bias, dy)
    )
    t, g = torch.tanh(alpha * x), dy / torch.cosh(alpha * x) ** 2
    w, b = 1.0 if weight is None else weight, 0.0 if bias is None else bias
    grads = [g * w * alpha, (g * w * x).sum().view(alpha.shape)]
    grads += [] if weight is None else [(dy * t).sum(0)]
    grads += [] if bias is None else [dy.sum(0)]
    return t * w + b, *grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("missing", ["", "w", "b", "wb"])
@pytest.mark.parametrize("scalar", [False, True], ids=["one", "scalar"])
def test_missing_parameters_and_scalar_alpha(dtype, missing, scalar):
    x, alpha, weight, bias, dy = inputs(7, 300, dtype)
    case = (
        x,
        alpha[0] if scalar else alpha,
        None if "w" in missing else weight,
        None if "b" in missing else bias,
        dy,
    )
    tolerance = (
        {"rtol": 1e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-2}
    )
    for a, b in zip(backward(*case), exact(*case), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, **tolerance)


def test_x_and_alpha_trade_powers_of_two():
    """dyt(4 x, alpha / 4) = dyt(x, alpha), to the bit, and so for the gradients."""
    x, alpha, weight, bias, dy = inputs(9, 500)
    y, dx, dalpha, dw, db = backward(x, alpha, weight, bias, dy)
    y_c, dx_c, dalpha_c, dw_c, db_c = backward(4 * x, alpha / 4, weight, bias, dy)
    for a, b in ((y, y_c), (dx, 4 * dx_c), (4 * dalpha, dalpha_c), (dw, dw_c), (db, db_c)):
        assert same_bits(a, b)


def test_odd_without_bias():
    x, alpha, weight, _, dy = inputs(5, 300)
    y, dx, dalpha, dw = backward(x, alpha, weight, None, dy)
    y_m, dx_m, dalpha_m, dw_m = backward(-x, alpha, weight, None, dy)
    for a, b in ((y, -y_m), (dx, dx_m), (dalpha, -dalpha_m), (dw, -dw_m)):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-5)


def test_linear_in_weight_bias_and_dy():
    """A power of two goes through to the bit; y is the weight's gradient summed with the weight."""
    x, alpha, weight, bias, dy = inputs(6, 200)
    y, dx, dalpha, dw, db = backward(x, alpha, weight, bias, dy)
    twice = backward(x, alpha, 2 * weight, 2 * bias, dy)
    for a, b in zip((2 * y, 2 * dx, 2 * dalpha, dw, db), twice, strict=True):
        assert same_bits(a, b)
    twice = backward(x, alpha, weight, bias, 2 * dy)
    for a, b in zip((y, 2 * dx, 2 * dalpha, 2 * dw, 2 * db), twice, strict=True):
        assert same_bits(a, b)
    total = (weight * dw + bias * db).double().sum()
    torch.testing.assert_close((dy.double() * y.double()).sum(), total, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_digits_near_zero(dtype, sign):
    """tanh(u) keeps its relative digits down to 1e-30, in fp64 to a few ulp."""
    u = sign * torch.logspace(-30, 2, 700, dtype=dtype, device=device())[None]
    one = torch.ones(1, dtype=dtype, device=device())
    y, _, _ = backward(u, one, None, None, torch.ones_like(u))
    truth = torch.tanh(u.double())
    assert ((y.double() - truth).abs() <= 16 * torch.finfo(dtype).eps * truth.abs()).all()


@pytest.mark.skipif(not KERNELS, reason="PyTorch itself differentiates tanh as 1 - tanh^2")
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_digits_of_the_slope(dtype, sign):
    """1 - tanh(u)^2 keeps its relative digits where tanh rounds to 1: to 40, where it is 7e-35."""
    u = sign * torch.linspace(0, 40, 801, dtype=dtype, device=device())[None]
    one = torch.ones(1, dtype=dtype, device=device())
    _, dx, _ = backward(u, one, None, None, torch.ones_like(u))
    truth = torch.cosh(u.double()) ** -2
    # the rounding of 2 u / ln 2 weighs u times as much in the exponential
    limit = torch.finfo(dtype).eps * (16 + 2 * u.double().abs()) * truth
    assert ((dx.double() - truth).abs() <= limit).all()


def test_saturated_elements():
    """tanh of an infinite product is 1 or -1, its slope 0: y and dx stay finite."""
    big = torch.finfo(torch.float32).max
    x = torch.tensor([[big, -big, float("inf"), float("-inf"), 1e4, -1e4]], device=device())
    one, dy = torch.ones(1, device=device()), torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    y = dyt(leaf, 8 * one, torch.full((6,), 3.0, device=device()), torch.ones(6, device=device()))
    y.backward(dy)
    assert y.tolist() == [[4.0, -2.0] * 3]
    assert not leaf.grad.any()


def test_bad_element_stays_in_its_column():
    x, alpha, weight, bias, dy = inputs(40, 600)
    plain = backward(x, alpha, weight, bias, dy)
    x[1, 17] = float("nan")
    y, dx, dalpha, dw, db = backward(x, alpha, weight, bias, dy)
    for a, b in zip((y, dx, dw), (plain[0], plain[1], plain[3]), strict=True):
        elsewhere = ~a.isnan()
        assert (~elsewhere).sum() == 1
        assert same_bits(a[elsewhere], b[elsewhere])
    assert all(t.isnan() for t in (y[1, 17], dx[1, 17], dw[17], dalpha))
    assert same_bits(db, plain[4])


def test_parameter_gradients_add_over_batches():
    x, alpha, weight, bias, dy = inputs(40, 65)
    whole = backward(x, alpha, weight, bias, dy)[2:]
    cuts = ((0, 1), (1, 30), (30, 30), (30, 40))
    parts = [backward(x[a:b], alpha, weight, bias, dy[a:b])[2:] for a, b in cuts]
    for total, *terms in zip(whole, *parts, strict=True):
        torch.testing.assert_close(total, sum(terms), rtol=1e-5, atol=2e-5)


def test_no_work_for_the_frozen(monkeypatch):
    """The bits of a gradient do not depend on which others are asked for; sums only where asked."""
    case = dict(zip((*NAMES, "dy"), inputs(5, 96), strict=True))
    dy = case.pop("dy")
    full = dict(zip(NAMES, backward(*case.values(), dy)[1:], strict=True))
    summed = []
    if KERNELS:
        original = dyt_module.sum_partials
        monkeypatch.setattr(
            dyt_module, "sum_partials", lambda p, *a: summed.append(p.numel()) or original(p, *a)
        )
    for wanted in itertools.chain(*(itertools.combinations(NAMES, n) for n in range(1, 4))):
        summed.clear()
        args = {n: t.detach().requires_grad_(n in wanted) for n, t in case.items()}
        grads = torch.autograd.grad(dyt(**args), [args[n] for n in wanted], dy)
        assert all(same_bits(g, full[n]) for n, g in zip(wanted, grads, strict=True))
        if KERNELS:
            asked = ("alpha" in wanted) + ("weight" in wanted or "bias" in wanted)
            assert len(summed) == asked, wanted


class Reference(torch.nn.Module):
    """The formula of the paper with the parameters of its module."""

    def __init__(self, N):
        super().__init__()
        self.alpha = torch.nn.Parameter(torch.full((1,), 0.5))
        self.weight = torch.nn.Parameter(torch.ones(N))
        self.bias = torch.nn.Parameter(torch.zeros(N))

    def forward(self, x):
        return torch.tanh(self.alpha * x) * self.weight + self.bias


def test_module_and_the_papers_exchange_state():
    ours, paper = DyT(48, device=device()), Reference(48).to(device())
    x = new().normal(2, 3, 48)
    torch.testing.assert_close(ours(x), paper(x), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in paper.parameters():
            parameter.normal_()
    ours.load_state_dict(paper.state_dict())
    torch.testing.assert_close(ours(x), paper(x), rtol=1e-5, atol=1e-6)
    paper.load_state_dict(ours.state_dict())
    assert [n for n, _ in ours.named_parameters()] == ["alpha", "weight", "bias"]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"init_alpha": 0.2}], ids=str)
def test_module_is_the_function(options):
    module = DyT((48,), device=device(), **options)
    x = new().normal(5, 48)
    alpha = options.get("init_alpha", 0.5)
    torch.testing.assert_close(module(x), torch.tanh(alpha * x), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    expected = dyt(x, module.alpha, module.weight, module.bias)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x), expected)
        assert repr(twin) == f"DyT((48,), bias={module.bias is not None}, init_alpha={alpha})"
    module.reset_parameters()
    torch.testing.assert_close(module(x), torch.tanh(alpha * x), rtol=1e-5, atol=1e-6)
    assert module.to(torch.float64)(x.double()).dtype == torch.float64


def test_module_takes_one_size():
    with pytest.raises(ValueError, match="one number"):
        DyT((4, 4))
    assert DyT(4, device="meta", dtype=torch.bfloat16).weight.dtype == torch.bfloat16
