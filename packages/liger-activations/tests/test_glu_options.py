"""Options of glu: the clamped forms of transformers, gradients at the clamp, names, modules."""

import copy
import itertools
import pickle

import pytest
import torch
from liger_activations import GLU, GeGLU, SwiGLU, geglu, glu, swiglu
from liger_activations.pointwise import ACTIVATIONS
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import assert_accurate, same_bits
from liger_core.testing.running import device

KERNELS = use_kernels(torch.empty(0, device=device()))
NAN, INF = float("nan"), float("inf")
F = torch.nn.functional


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def gpt_oss(both, alpha, limit):
    gate, up = both[..., ::2], both[..., 1::2]
    gate, up = gate.clamp(min=None, max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


def minimax_m3(both, alpha, limit):
    gate, up = both.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1.0) * (gate * torch.sigmoid(gate * alpha))


def deepseek_v4(both, alpha, limit):
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate.clamp(max=limit)) * up.clamp(min=-limit, max=limit)


def step_3p7(both, alpha, limit):
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate).clamp(max=limit) * up.clamp(min=-limit, max=limit)


def cohere2_vision(both, alpha, limit):
    up, gate = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def conformer(both, alpha, limit):
    return F.glu(both, dim=-1)


OAI = {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0}
MODELS = [
    (gpt_oss, {"layout": "interleaved", **OAI}),
    (minimax_m3, OAI),
    (deepseek_v4, {"limit": 7.0}),
    (step_3p7, {"limit": 7.0, "clamp": "after"}),
    (cohere2_vision, {"layout": "up_first"}),
    (conformer, {"layout": "up_first", "activation": "sigmoid"}),
]


def both_passes(function, both, dy):
    leaf = both.detach().requires_grad_()
    y = function(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("model", "options"), MODELS, ids=lambda v: getattr(v, "__name__", None))
def test_formulas_of_models(model, options, dtype):
    """As accurate as the model's own lines; a fifth of the gates is beyond the limit."""
    both, dy = new(dtype).normal(6, 600, std=8.0), new(dtype, 1).normal(6, 300)
    ours = both_passes(lambda x: glu(x, **options), both, dy)
    eager = both_passes(lambda x: model(x, 1.702, 7.0), both, dy)
    truth = both_passes(lambda x: model(x, 1.702, 7.0), both.double(), dy.double())
    for name, a, b, c in zip(("y", "d"), ours, eager, truth, strict=True):
        assert_accurate(f"{model.__name__} {name}", a, b, c, bound=1.25)
        # torch.nn.functional.glu rounds once, the others after every step
        if not KERNELS and dtype == torch.bfloat16 and model is not conformer:
            assert same_bits(a, b)


@pytest.mark.parametrize("layout", ["separate", "interleaved"])
@pytest.mark.parametrize("clamp", ["before", "after"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_at_the_limit(activation, clamp, layout):
    """Those of torch.clamp: at the limit itself they pass; beyond it, and at a NaN, they do not."""
    edge = torch.tensor([0.0, 0.5, 1.0, 1.0 + 2**-20, 2.0, INF, -1.0, -1.0 - 2**-20, -3.0])
    gates = torch.cat((edge[edge < INF], torch.tensor([NAN])))
    gate, up = (t.flatten() for t in torch.meshgrid(gates, edge, indexing="ij"))
    dy = new().normal(len(gate))
    results = []
    for function in (glu, _by_torch):
        a, b = (t.to(device()).requires_grad_() for t in (gate.clone(), up.clone()))
        if layout == "separate" or function is _by_torch:
            y = function(a, b, activation, limit=1.0, clamp=clamp)
        else:
            both = torch.stack((a, b), dim=-1).flatten(-2)
            y = glu(both, None, activation, limit=1.0, clamp=clamp, layout="interleaved")
        results.append([y.detach(), *torch.autograd.grad(y, (a, b), dy)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def _by_torch(gate, up, activation, limit, clamp):
    functions = {
        "gelu_tanh": lambda a: F.gelu(a, approximate="tanh"),
        "relu_squared": lambda a: F.relu(a).square(),
        "sigmoid": torch.sigmoid,
    }
    function = functions.get(activation) or getattr(F, activation)
    if clamp == "before":
        return function(gate.clamp(max=limit)) * up.clamp(-limit, limit)
    return function(gate).clamp(max=limit) * up.clamp(-limit, limit)


def test_options_without_effect_change_no_bit():
    """An alpha of 1, an offset of 0 and a limit that nothing reaches, and integers for floats."""
    gate, up, dy = new().normal(4, 90), new(seed=1).normal(4, 90), new(seed=2).normal(4, 90)

    def passes(**options):
        leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
        y = glu(*leaves, **options)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    plain = passes()
    for options in ({"limit": INF}, {"limit": 100}, {"limit": 100.0, "clamp": "after"}):
        for a, b in zip(plain, passes(**options), strict=True):
            assert same_bits(a, b)
    for a, b in zip(passes(alpha=1, up_offset=0), plain, strict=True):
        assert same_bits(a, b)
    exact = {"alpha": 2, "limit": 1, "up_offset": 1}
    floats = {name: float(value) for name, value in exact.items()}
    for a, b in zip(passes(**exact), passes(**floats), strict=True):
        assert same_bits(a, b)


def test_bad_up_stays_in_y():
    """y is NaN where up is; torch.clamp gives such an up no gradient."""
    gate, up = new().normal(3, 40), new(seed=1).normal(3, 40)
    up[1, 7] = NAN
    leaf = up.requires_grad_()
    y = glu(gate, leaf, limit=2.0)
    assert y.isnan().sum() == 1
    assert y[1, 7].isnan()
    (dup,) = torch.autograd.grad(y.sum(), leaf)
    assert dup[1, 7] == 0.0


def test_offset_is_added_after_the_limit():
    """With up at its limit, y = act(gate) * (limit + offset); the offset has no gradient of up."""
    gate, up = new().normal(3, 40), torch.full((3, 40), 5.0, device=device(), requires_grad=True)
    y = glu(gate, up, limit=2.0, up_offset=1.0)
    torch.testing.assert_close(y, 3.0 * F.silu(gate.clamp(max=2.0)), rtol=1e-6, atol=1e-6)
    (dup,) = torch.autograd.grad(y.sum(), up)
    assert not dup.any()


def test_names():
    gate, up = new().normal(2, 30), new(seed=1).normal(2, 30)
    assert same_bits(swiglu(gate, up), glu(gate, up, "silu"))
    assert same_bits(geglu(gate, up), glu(gate, up, "gelu_tanh"))
    assert same_bits(swiglu(gate), glu(*gate.chunk(2, dim=-1)))
    assert same_bits(geglu(gate, up, "none"), glu(gate, up, "gelu"))
    assert same_bits(swiglu(gate, layout="up_first"), glu(*reversed(gate.chunk(2, dim=-1))))
    results = [glu(gate, up, activation) for activation in ACTIVATIONS]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(results, 2))
    with pytest.raises(ValueError, match="activation must be one of"):
        geglu(gate, up, approximate="erf")
    with pytest.raises(TypeError, match="alpah"):
        swiglu(gate, up, alpah=2.0)


@pytest.mark.parametrize(
    ("module", "options", "shown"),
    [
        (GLU(), {}, "GLU('silu')"),
        (GLU("sigmoid", layout="up_first"), {"activation": "sigmoid", "layout": "up_first"}, None),
        (SwiGLU(alpha=1.5), {"alpha": 1.5}, "SwiGLU('silu', alpha=1.5)"),
        (GeGLU(), {"activation": "gelu_tanh"}, "GeGLU('gelu_tanh')"),
        (GeGLU("none"), {"activation": "gelu"}, "GeGLU('gelu')"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_module_is_the_function(module, options, shown):
    gate, up = new().normal(2, 3, 30), new(seed=1).normal(2, 3, 30)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        if "layout" not in options:
            assert same_bits(twin(gate, up), glu(gate, up, **options))
        assert same_bits(twin(gate), glu(gate, **options))
        assert repr(twin) == (shown or "GLU('sigmoid', layout='up_first')")
        assert twin.state_dict() == {}
