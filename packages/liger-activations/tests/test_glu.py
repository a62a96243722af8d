"""glu beyond the generic suite: layouts, relations, parity with transformers, modules."""

import copy
import pickle

import pytest
import torch
from liger_activations import GLU, GeGLU, SwiGLU, geglu, glu, swiglu
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device

KERNELS = use_kernels(torch.empty(0, device=device()))
ACTIVATIONS = ("silu", "gelu_tanh")
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def act(a, activation):
    """The activations by their formulas, which keep fp64 digits in fp64."""
    if activation == "silu":
        return a * torch.sigmoid(a)
    return 0.5 * a * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (a + 0.044715 * a**3)))


def backward(gate, up, dy, activation):
    """y, dgate, dup."""
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    y = glu(gate, up, activation)
    return y.detach(), *torch.autograd.grad(y, (gate, up), dy)


def separate(gate, up, dy, activation):
    return backward(gate, up, dy, activation)


def joined(gate, up, dy, activation):
    """[gate | up] in one tensor."""
    gate_up = torch.cat((gate, up), dim=-1).requires_grad_()
    y = glu(gate_up, activation=activation)
    (d,) = torch.autograd.grad(y, gate_up, dy)
    assert d.is_contiguous()
    return y.detach(), *d.chunk(2, dim=-1)


def views(gate, up, dy, activation):
    """gate and up as the halves of one projection, handed over separately."""
    return backward(*torch.cat((gate, up), dim=-1).chunk(2, dim=-1), dy, activation)


def shifted(gate, up, dy, activation):
    """Rows longer than what is used of them, at an odd offset."""
    pad = [torch.cat((t[:, :1], t, t[:, :2]), dim=-1)[:, 1:-2] for t in (gate, up, dy)]
    return backward(*pad, activation)


def transposed(gate, up, dy, activation):
    return backward(*(t.t().contiguous().t() for t in (gate, up, dy)), activation)


@each_activation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("N", [33, 256, 2500])
def test_layouts_agree(activation, dtype, N):
    """To the bit; PyTorch's own kernels take another exponential where memory is not contiguous."""
    case = new(dtype).normal(3, N, std=2.0), new(dtype, 1).normal(3, N), new(dtype, 2).normal(3, N)
    expected = separate(*case, activation)
    for layout in (joined, views, shifted, transposed):
        for a, b in zip(expected, layout(*case, activation), strict=True):
            if KERNELS:
                assert same_bits(a, b), layout.__name__
            else:
                eps = torch.finfo(dtype).eps
                torch.testing.assert_close(a, b, rtol=2 * eps, atol=2 * eps)


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
            assert same_bits(a * factor, b)
        _, dgate_c, dup_c = backward(gate, up, dy * factor, activation)
        assert same_bits(dgate * factor, dgate_c)
        assert same_bits(dup * factor, dup_c)
    other = new(seed=3).normal(3, 90)
    total = glu(gate, up, activation) + glu(gate, other, activation)
    torch.testing.assert_close(glu(gate, up + other, activation), total, rtol=1e-5, atol=1e-5)
    y, dgate, dup_0 = backward(gate, torch.zeros_like(up), dy, activation)
    assert not y.any()
    assert not dgate.any()
    assert same_bits(dup, dup_0)


@each_activation
def test_reflection(activation):
    """act(a) - act(-a) = a for both activations."""
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
    # 1 + tanh cancels at -10; silu is 0 where exp overflows
    floor = 1e-6 if activation == "gelu_tanh" and sign < 0 else 1e-37
    torch.testing.assert_close(y.double(), value.detach(), rtol=3e-6, atol=floor)
    torch.testing.assert_close(dup.double(), value.detach(), rtol=3e-6, atol=floor)
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
    for a, b in zip(plain, backward(gate, up, dy, activation), strict=True):
        assert same_bits(a[elsewhere], b[elsewhere])
        assert b[1, 17].isnan()


@each_activation
def test_bf16_is_the_formula_of_transformers(activation):
    """act_fn(gate) * up: the PyTorch path has its bits; a kernel rounds once, the exact result."""
    gate, up = new(torch.bfloat16).normal(8, 512, std=2.0), new(torch.bfloat16, 1).normal(8, 512)
    y = glu(gate, up, activation)
    if not KERNELS:
        functional = torch.nn.functional
        tanh_gelu = {"silu": functional.silu, "gelu_tanh": functional.gelu}[activation]
        options = {} if activation == "silu" else {"approximate": "tanh"}
        assert same_bits(y, tanh_gelu(gate, **options) * up)
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


def test_names():
    gate, up = new().normal(2, 30), new(seed=1).normal(2, 30)
    assert same_bits(swiglu(gate, up), glu(gate, up, "silu"))
    assert same_bits(geglu(gate, up), glu(gate, up, "gelu_tanh"))
    assert same_bits(swiglu(gate), glu(*gate.chunk(2, dim=-1)))
    assert not torch.equal(swiglu(gate, up), geglu(gate, up))
    with pytest.raises(ValueError, match="activation must be one of"):
        geglu(gate, up, approximate="none")


@pytest.mark.parametrize(
    ("module", "activation"),
    [(GLU(), "silu"), (GLU("gelu_tanh"), "gelu_tanh"), (SwiGLU(), "silu"), (GeGLU(), "gelu_tanh")],
    ids=["GLU", "GLU-gelu", "SwiGLU", "GeGLU"],
)
def test_module_is_the_function(module, activation):
    gate, up = new().normal(2, 3, 30), new(seed=1).normal(2, 3, 30)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(gate, up), glu(gate, up, activation))
        assert same_bits(twin(gate), glu(gate, activation=activation))
        assert repr(twin) == f"{type(module).__name__}({activation!r})"
        assert twin.state_dict() == {}
