"""glu_linear beyond the generic suite: its bits, what it keeps, frozen inputs, autocast."""

import copy
import itertools
import pickle

import pytest
import torch
from liger_activations import GLULinear, glu, glu_linear
from liger_activations.pointwise import ACTIVATIONS
from liger_core.device import use_kernels
from liger_core.testing import Builder, launches
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

KERNELS = use_kernels(torch.empty(0, device=device()))
NAMES = ("gate", "up", "weight", "bias")
CLAMPED = {"alpha": 1.703125, "limit": 1.5, "up_offset": 1.0}
FORMS = [
    *({"activation": activation} for activation in ACTIVATIONS),
    CLAMPED,
    {"activation": "relu_squared", "limit": 1.5, "clamp": "after"},
    *({"layout": layout, **CLAMPED} for layout in ("concatenated", "up_first", "interleaved")),
]


def tensors(dtype=torch.float32, tokens=(3, 7), wide=300, hidden=40, in_one=False):
    new = Builder(dtype, device())
    found = {
        "gate": new.normal(*tokens, wide * (2 if in_one else 1), std=2.0),
        "up": None if in_one else new.normal(*tokens, wide),
        "weight": new.normal(hidden, wide, std=wide**-0.5),
        "bias": new.normal(hidden),
    }
    return {n: t if t is None else t.requires_grad_() for n, t in found.items()}


def unfused(gate, up, weight, bias, **options):
    return linear(glu(gate, up, **options), weight, bias)


def gradients(function, inputs, dy=None):
    leaves = [t for t in inputs.values() if t is not None and t.requires_grad]
    y = function(**inputs)
    dy = Builder(y.dtype, y.device, 1).normal(*y.shape) if dy is None else dy
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_bits_of_the_unfused_path(options, dtype):
    """Above all those of dweight: the product of the backward is that of the forward. The kernel
    that sums for the bias has an order of its own.
    """
    inputs = tensors(dtype, in_one="layout" in options)
    *ours, dbias = gradients(lambda **t: glu_linear(**t, **options), inputs)
    *others, expected = gradients(lambda **t: unfused(**t, **options), inputs)
    for a, b in zip(ours, others, strict=True):
        assert same_bits(a, b)
    if not KERNELS:
        assert same_bits(dbias, expected)
    torch.testing.assert_close(dbias, expected)


def kept(function):
    """What `function` returns, and the tensors that it keeps for a backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        return function(), saved


@pytest.mark.parametrize("in_one", [False, True])
def test_keeps_its_inputs_and_nothing_else(in_one):
    inputs = tensors(in_one=in_one)
    _, saved = kept(lambda: glu_linear(**inputs))
    wanted = [inputs[name] for name in ("gate", "up", "weight") if inputs[name] is not None]
    assert sorted(t.data_ptr() for t in saved) == sorted(t.data_ptr() for t in wanted)


@pytest.mark.parametrize("name", ["gate", "up", "weight"])
def test_written_input_is_an_error(name):
    inputs = tensors()
    y = glu_linear(**inputs)
    with torch.no_grad():
        inputs[name].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class Work(TorchDispatchMode):
    """Counts matrix products and launches."""

    def __init__(self):
        super().__init__()
        self.products, self.launched = 0, launches.count()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4)), ids=str)
def test_frozen_inputs(needed):
    """Nothing is kept or computed for them, and the others have the bits that they have anyway."""
    inputs = tensors()
    full = dict(zip(NAMES, gradients(glu_linear, inputs)[1:], strict=True))
    for (name, t), need in zip(inputs.items(), needed, strict=True):
        inputs[name] = t.requires_grad_(need)
    y, saved = kept(lambda: glu_linear(**inputs))
    gate, up, weight, bias = needed
    assert len(saved) == 2 * (gate or up or weight) + (gate or up)
    if not any(needed):
        return
    dy = Builder(y.dtype, y.device, 1).normal(*y.shape)
    with Work() as work:
        y.backward(dy)
    assert work.products == (gate or up) + weight
    if KERNELS and device().type == "cpu":
        assert launches.count() - work.launched == (gate or up or weight) + 2 * bias
    for name, need in zip(NAMES, needed, strict=True):
        assert same_bits(inputs[name].grad, full[name]) if need else inputs[name].grad is None


@pytest.mark.parametrize("inside", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_is_that_of_a_linear_layer(dtype, inside):
    """Dtypes and bits; gate and up as a linear layer under autocast gives them, or in fp32."""
    if (inside, dtype) == (torch.bfloat16, torch.float16):
        pytest.skip("no linear layer gives bf16 under fp16 autocast")
    inputs = tensors()
    inputs |= {n: inputs[n].detach().to(inside).requires_grad_() for n in ("gate", "up")}

    def under_autocast(function):
        def run(**given):
            with torch.autocast(device().type, dtype=dtype):
                return function(**given)

        return run

    ours = gradients(under_autocast(glu_linear), inputs)
    expected = gradients(under_autocast(unfused), inputs)
    assert [t.dtype for t in ours] == [dtype, inside, inside, torch.float32, torch.float32]
    for a, b in zip(ours, expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [(), (4,), (3, 7)], ids=str)
def test_result_is_used_as_that_of_a_linear_layer(tokens, bias):
    """Written in place, and with an expanded gradient coming in; one token needs no dimension."""

    def added(function):
        def run(**given):
            y = function(**given)
            y += torch.ones_like(y)
            y *= 2.0
            return y

        return run

    inputs = tensors(tokens=tokens) | ({} if bias else {"bias": None})
    dy = torch.ones((), device=device()).expand(*tokens, 40)
    pair = gradients(added(glu_linear), inputs, dy), gradients(added(unfused), inputs, dy)
    for a, b in zip(*pair, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not glu_linear(**inputs)._is_view()


def test_module_is_a_linear_layer_with_two_inputs():
    module = GLULinear(300, 40, device=device(), activation="silu", limit=1.5)
    inputs = tensors() | dict(module.named_parameters())
    expected = glu_linear(**inputs, limit=1.5)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(inputs["gate"], inputs["up"]), expected)
        assert list(twin.state_dict()) == ["weight", "bias"]
    shown = "GLULinear(in_features=300, out_features=40, bias=True, activation='silu', limit=1.5)"
    assert repr(module) == shown
    both = torch.cat((inputs["gate"], inputs["up"]), dim=-1)
    assert same_bits(module(both), expected)
    assert GLULinear(8, 4, bias=False).bias is None


def test_meta_tensors():
    gate, weight = torch.empty(2, 8, device="meta"), torch.empty(5, 4, device="meta")
    assert glu_linear(gate, None, weight).shape == (2, 5)


def test_backward_under_hooks_of_saved_tensors():
    (gate, weight), (dy,) = _leaves(), (torch.ones(3, 5, device=device()),)
    expected = torch.autograd.grad(glu_linear(gate, None, weight), (gate, weight), dy)
    with torch.autograd.graph.save_on_cpu():
        found = torch.autograd.grad(glu_linear(gate, None, weight), (gate, weight), dy)
    assert all(map(same_bits, found, expected))


def _leaves():
    new = Builder(torch.float32, device())
    return new.normal(3, 8).requires_grad_(), new.normal(5, 4).requires_grad_()
