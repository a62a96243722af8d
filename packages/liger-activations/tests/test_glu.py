"""glu beyond the generic suite: layouts, relations, digits, parity with transformers."""

import pytest
import torch
from liger_activations import glu
from liger_activations.pointwise import ACTIVATIONS
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device

KERNELS = use_kernels(torch.empty(0, device=device()))
SELF_GATED = ("silu", "gelu", "gelu_tanh")
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def act(a, activation):
    """The activations by their formulas, which keep fp64 digits in fp64."""
    if activation == "gelu":
        return 0.5 * a * torch.special.erfc(-a / 2.0**0.5)
    if activation == "gelu_tanh":
        return 0.5 * a * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (a + 0.044715 * a**3)))
    if activation in ("relu", "relu_squared"):
        return torch.relu(a) ** (1 if activation == "relu" else 2)
    return torch.sigmoid(a) if activation == "sigmoid" else a * torch.sigmoid(a)


def backward(gate, up, dy, activation):
    """y, dgate, dup."""
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    y = glu(gate, up, activation)
    return y.detach(), *torch.autograd.grad(y, (gate, up), dy)


def separate(gate, up, dy, activation):
    return backward(gate, up, dy, activation)


def in_one(both, dy, activation, layout):
    """y and the gradient of both."""
    both = both.requires_grad_()
    y = glu(both, activation=activation, layout=layout)
    (d,) = torch.autograd.grad(y, both, dy)
    assert d.is_contiguous()
    return y.detach(), d


def concatenated(gate, up, dy, activation):
    y, d = in_one(torch.cat((gate, up), dim=-1), dy, activation, "concatenated")
    return y, *d.chunk(2, dim=-1)


def up_first(gate, up, dy, activation):
    y, d = in_one(torch.cat((up, gate), dim=-1), dy, activation, "up_first")
    return y, *reversed(d.chunk(2, dim=-1))


def interleaved(gate, up, dy, activation):
    y, d = in_one(torch.stack((gate, up), dim=-1).flatten(-2), dy, activation, "interleaved")
    return y, d[..., ::2], d[..., 1::2]


def interleaved_shifted(gate, up, dy, activation):
    """Rows of pairs that start at an odd offset."""
    both = torch.stack((gate, up), dim=-1).flatten(-2)
    pad = torch.cat((both[:, :1], both, both[:, :2]), dim=-1)[:, 1:-2]
    y, d = in_one(pad, dy, activation, "interleaved")
    return y, d[..., ::2], d[..., 1::2]


def views(gate, up, dy, activation):
    """gate and up as the halves of one projection, handed over separately."""
    return backward(*torch.cat((gate, up), dim=-1).chunk(2, dim=-1), dy, activation)


def shifted(gate, up, dy, activation):
    """Rows longer than what is used of them, at an odd offset."""
    pad = [torch.cat((t[:, :1], t, t[:, :2]), dim=-1)[:, 1:-2] for t in (gate, up, dy)]
    return backward(*pad, activation)


def transposed(gate, up, dy, activation):
    return backward(*(t.t().contiguous().t() for t in (gate, up, dy)), activation)


LAYOUTS = (concatenated, up_first, interleaved, interleaved_shifted, views, shifted, transposed)


@each_activation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("N", [33, 256, 2500])
def test_layouts_agree(activation, dtype, N):
    """To the bit; PyTorch's own kernels take another exponential where memory is not contiguous."""
    case = new(dtype).normal(3, N, std=2.0), new(dtype, 1).normal(3, N), new(dtype, 2).normal(3, N)
    expected = separate(*case, activation)
    for layout in LAYOUTS:
        for a, b in zip(expected, layout(*case, activation), strict=True):
            if KERNELS:
                assert same_bits(a, b), layout.__name__
            else:
                eps = torch.finfo(dtype).eps
                torch.testing.assert_close(a, b, rtol=2 * eps, atol=2 * eps + 1e-5)


@each_activation
def test_backward_leaves_gate_and_up_alone(activation):
    """Another op that keeps them gets its right gradient, and a second backward the same one."""
    gate, up, dy = new().normal(4, 70), new(seed=1).normal(4, 70), new(seed=2).normal(4, 70)

    def loss(gate, up, function):
        a, b = gate * 1, up * 1
        return ((a * a + b * b + function(a, b)) * a * b).mul(dy.to(gate.dtype)).sum()

    leaves = [t.clone().requires_grad_() for t in (gate, up)]
    value = loss(*leaves, lambda a, b: glu(a, b, activation))
    grads = torch.autograd.grad(value, leaves, retain_graph=True)
    again = torch.autograd.grad(value, leaves)
    exact = [t.double().requires_grad_() for t in (gate, up)]
    truth = torch.autograd.grad(loss(*exact, lambda a, b: act(a, activation) * b), exact)
    for first, second, right in zip(grads, again, truth, strict=True):
        torch.testing.assert_close(first.double(), right, rtol=1e-5, atol=1e-5)
        assert same_bits(first, second)


@each_activation
def test_gate_and_up_may_be_one_tensor(activation):
    x, dy = new().normal(3, 50), new(seed=1).normal(3, 50)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    glu(leaf, leaf, activation).backward(dy)
    (act(exact, activation) * exact).backward(dy.double())
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


@each_activation
def test_linear_in_up_and_in_dy(activation):
    """A power of two goes through to the bit; sums go through up to rounding; a zero stays zero."""
    gate, up, dy = (
        new().normal(3, 90, std=3.0),
        new(seed=1).normal(3, 90),
        new(seed=2).normal(3, 90),
    )
    y, dgate, dup = backward(gate, up, dy, activation)
    for factor in (-1.0, 4.0, 0.125):
        for a, b in zip((y, dgate), backward(gate, up * factor, dy, activation), strict=False):
            assert torch.equal(a * factor, b)
        _, dgate_c, dup_c = backward(gate, up, dy * factor, activation)
        assert torch.equal(dgate * factor, dgate_c)
        assert torch.equal(dup * factor, dup_c)
    other = new(seed=3).normal(3, 90)
    total = glu(gate, up, activation) + glu(gate, other, activation)
    torch.testing.assert_close(glu(gate, up + other, activation), total, rtol=1e-5, atol=1e-5)
    y, dgate, dup_0 = backward(gate, torch.zeros_like(up), dy, activation)
    assert not y.any()
    assert not dgate.any()
    assert same_bits(dup, dup_0)


@pytest.mark.parametrize("activation", SELF_GATED)
def test_reflection(activation):
    """act(a) - act(-a) = a where act(a) = a times a distribution function."""
    gate, up = new().normal(4, 64, std=3.0), new(seed=1).normal(4, 64)
    both = glu(gate, up, activation) - glu(-gate, up, activation)
    torch.testing.assert_close(both, gate * up, rtol=1e-6, atol=1e-6)


@each_activation
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_digits_over_the_range(activation, sign):
    """1e-30 to 1e4: no overflow of the exponential, no cancellation near zero."""
    gate = sign * torch.logspace(-30, 4, 500, dtype=torch.float32, device=device())[None]
    ones = torch.ones_like(gate)
    y, dgate, dup = backward(gate, ones, ones, activation)
    exact = gate.double().requires_grad_()
    value = act(exact, activation)
    (slope,) = torch.autograd.grad(value.sum(), exact)
    # 1 + tanh cancels at -10, as PyTorch's 1 + erf does; silu is 0 where exp overflows
    cancels = activation == "gelu_tanh" or (activation == "gelu" and not KERNELS)
    floor = 1e-6 if cancels and sign < 0 else 1e-37
    # exp(-a^2 / 2) has the error of its argument
    rtol = 2e-5 if activation == "gelu" else 3e-6
    torch.testing.assert_close(y.double(), value.detach(), rtol=rtol, atol=floor)
    torch.testing.assert_close(dup.double(), value.detach(), rtol=rtol, atol=floor)
    torch.testing.assert_close(dgate.double(), slope, rtol=1e-5, atol=1e-6)


@each_activation
def test_permutations(activation):
    gate, up, dy = (new(seed=i).normal(6, 100) for i in range(3))
    rows, cols = torch.randperm(6, device=gate.device)[:, None], torch.randperm(100).to(gate.device)
    plain = backward(gate, up, dy, activation)
    moved = backward(*(t[rows, cols] for t in (gate, up, dy)), activation)
    for a, b in zip(plain, moved, strict=True):
        if KERNELS:
            assert same_bits(a[rows, cols], b)
        else:
            torch.testing.assert_close(a[rows, cols], b, rtol=1e-6, atol=1e-6)


@each_activation
def test_bad_element_stays_alone(activation):
    gate, up, dy = (new(seed=i).normal(3, 300) for i in range(3))
    plain = backward(gate, up, dy, activation)
    gate[1, 17] = float("nan")
    elsewhere = ~gate.isnan()
    y, dgate, dup = backward(gate, up, dy, activation)
    for a, b in zip(plain, (y, dgate, dup), strict=True):
        assert same_bits(a[elsewhere], b[elsewhere])
    assert y[1, 17].isnan()
    assert dup[1, 17].isnan()
    # the slope of the ReLU is 1 for a NaN, as in torch
    assert dgate[1, 17].isnan() != (activation == "relu")


@each_activation
def test_bf16_is_the_formula_of_transformers(activation):
    """act_fn(gate) * up: the PyTorch path has its bits; a kernel rounds once, the exact result."""
    gate, up = new(torch.bfloat16).normal(8, 512, std=2.0), new(torch.bfloat16, 1).normal(8, 512)
    y = glu(gate, up, activation)
    if not KERNELS:
        F = torch.nn.functional
        functions = {
            "gelu_tanh": lambda a: F.gelu(a, approximate="tanh"),
            "relu_squared": lambda a: F.relu(a).square(),
            "sigmoid": torch.sigmoid,
        }
        function = functions.get(activation) or getattr(F, activation)
        assert same_bits(y, function(gate) * up)
    else:
        truth = (act(gate.double(), activation) * up.double()).bfloat16()
        assert (y != truth).float().mean() < 1e-2
        torch.testing.assert_close(y, truth, rtol=2.0**-7, atol=1e-5)


@pytest.mark.parametrize("frozen", ["gate", "up"])
@each_activation
def test_frozen_half(activation, frozen):
    """The other one's gradient has the bits it has when both are asked for."""
    gate, up, dy = (new(seed=i).normal(3, 40) for i in range(3))
    _, dgate, dup = backward(gate, up, dy, activation)
    inputs = {
        "gate": gate.requires_grad_(frozen != "gate"),
        "up": up.requires_grad_(frozen != "up"),
    }
    glu(**inputs, activation=activation).backward(dy)
    assert inputs[frozen].grad is None
    assert same_bits(gate.grad if frozen == "up" else up.grad, dgate if frozen == "up" else dup)


def test_every_bf16_gate_of_the_exact_gelu():
    """Half an ulp, also where 1 + erf has lost its digits; the slope to fp32."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    gate = bits.view(torch.bfloat16).to(device())
    gate = gate[gate.abs() < 1e4]
    ones = torch.ones_like(gate)
    exact = gate.double().requires_grad_()
    value = act(exact, "gelu")
    (slope,) = torch.autograd.grad(value.sum(), exact)
    y, dgate, _ = backward(gate, ones, ones, "gelu")
    normal = value.abs() > 2.0**-125
    normal &= KERNELS | (exact > -2.0)
    torch.testing.assert_close(y.double()[normal], value.detach()[normal], rtol=2.0**-7.99, atol=0)
    torch.testing.assert_close(dgate.double(), slope, rtol=2.0**-7.99, atol=1e-6)
    y, dgate, _ = backward(gate.float(), ones.float(), ones.float(), "gelu")
    torch.testing.assert_close(y.double(), value.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dgate.double(), slope, rtol=1e-6, atol=1e-6)
