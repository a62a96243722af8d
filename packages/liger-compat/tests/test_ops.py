"""The autograd Functions by name: argument order, submodules, results of the functions."""

import importlib
import operator

import pytest
import torch
import torch.nn.functional as F
from compat_cases import INPUTS, H, M, N, V, labels, normal
from liger_kernel import ops
from liger_kernel.ops import utils
from liger_kernel.ops.functions import TABLE
from liger_kernel.transformers import functional
from torch.testing import assert_close

EPS = {"eps": 1e-6}
# Function, inputs, arguments by position; function of `functional`, the same arguments by name
CALLS = [
    ("LigerRMSNormFunction", "x weight", (1e-6, 1.0, "gemma", True, None),
     "rms_norm", {**EPS, "offset": 1.0, "casting_mode": "gemma"}),
    ("LigerFusedAddRMSNormFunction", "x residual weight", (1e-6, 1.0, "gemma", False),
     "fused_add_rms_norm", {**EPS, "offset": 1.0, "casting_mode": "gemma"}),
    ("LigerModulatedRMSNormFunction", "x weight scale scale", (1e-6, 1.0, "llama", True),
     "modulated_rms_norm", {**EPS, "offset": 1.0}),
    ("LigerLayerNormFunction", "x weight weight", (1e-6,), "layer_norm", EPS),
    ("LigerGroupNormFunction", "image weight weight", (N, 4, 1e-6),
     "group_norm", {"num_channels": N, "num_groups": 4, **EPS}),
    ("LigerPolyNormFunction", "x three one", (1e-3, True), "poly_norm", {"eps": 1e-3}),
    ("LigerDyTFunction", "x one weight weight", (), "dyt", {}),
    ("LigerSiLUMulFunction", "gate up", (0.5, 2.0),
     "swiglu", {"gate_multiplier": 0.5, "down_multiplier": 2.0}),
    ("LigerGELUMulFunction", "gate up", (), "geglu", {}),
    ("LigerReLUSquaredFunction", "x", (), "relu_squared", {}),
    ("LigerSoftmaxFunction", "x", (), "softmax", {}),
    ("LigerSparsemaxFunction", "x", (1,), "sparsemax", {"dim": 1}),
    ("LigerRopeFunction", "q k half_table half_table", (None, 1, 8),
     "rope", {"rotary_dim": 8}),
    ("LigerQwen2VLMRopeFunction", "q k axes axes", ((1, 2, 1), 1),
     "qwen2vl_mrope", {"mrope_section": (1, 2, 1)}),
    ("LigerLlama4RopeFunction", "q_by_token k_by_token freqs", (None,), "llama4_rope", {}),
    ("LigerTVDLossFunction", "p p2 labels", ("sum", -100),
     "tvd", {"reduction": "sum"}),
    ("LigerJSDFunction", "log_q log_p labels", (0.3, -100, None, None), "jsd", {"beta": 0.3}),
    ("LigerFusedLinearKLDivFunction", "tokens head p2 labels", ("sum", -100, 2.0, 1e-10, None),
     "fused_linear_kl_div", {"reduction": "sum", "temperature": 2.0}),
    ("LigerFusedCETVDFunction", "logits teacher_logits labels", (-100,), "fused_ce_tvd", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "by_position", "function", "by_name"), CALLS)
def test_function_takes_its_arguments_in_order(name, inputs, by_position, function, by_name):
    torch.manual_seed(0)
    tensors = [INPUTS[i]() for i in inputs.split()]
    actual = getattr(ops, name).apply(*tensors, *by_position)
    assert_close(actual, getattr(functional, f"liger_{function}")(*tensors, **by_name))


def test_cross_entropies_give_four():
    x, w, t, b = normal(M, H).requires_grad_(), normal(V, H), labels(), normal(V)
    expected = F.cross_entropy(F.linear(x, w, b), t, reduction="sum")
    found = ops.LigerFusedLinearCrossEntropyFunction.apply(
        x, w, t, b, None, -100, 0.0, 0.0, "sum", None, False, None, False, False, False, None, None
    )
    assert_close(found[0], expected)
    assert found[1:] == (None, None, None)
    logits = F.linear(x, w, b)
    found = ops.LigerCrossEntropyFunction.apply(
        logits, t, None, -100, 0.1, 0.0, "sum", None, True, True, True
    )
    assert_close(found[0] - found[1], expected)
    assert_close(found[3], logits.argmax(-1).where(t != -100, -1))
    assert found[2].ndim == 0


def test_kl_and_linear_jsd():
    q, p = normal(M, V).log_softmax(-1), normal(M, V).softmax(-1)
    expected = F.kl_div(q, p, reduction="batchmean")
    assert_close(ops.LigerKLDivLossFunction.apply(q, p), expected)
    heads = normal(M, H), normal(V, H), normal(M, H), normal(V, H)
    actual = ops.LigerFusedLinearJSDFunction.apply(*heads, labels(), 0.1, -100, 2.0, None, None)
    assert_close(actual, functional.liger_fused_linear_jsd(*heads, labels(), 0.1, -100, 2.0))


def test_scaled_cross_entropy_with_entropy_and_selected_tokens():
    x, w, t = normal(M, H).requires_grad_(), normal(V, H), labels()
    ids = torch.tensor([3, 0, 3])
    nll, entropy, selected = ops.LigerFusedLinearScaledCrossEntropyFunction.apply(
        x, w, t, 2.0, -100, 1, True, ids
    )
    logp = F.log_softmax(F.linear(x, w) / 2, -1)
    counts = t != -100
    assert_close(nll, F.cross_entropy(F.linear(x, w) / 2, t, reduction="none"))
    assert_close(entropy, -(logp.exp() * logp).sum(-1).where(counts, 0.0))
    assert_close(selected, logp[:, ids].where(counts[:, None], 0.0), check_dtype=False)
    upstream = torch.randn_like(selected)
    actual = torch.autograd.grad(selected, x, upstream)[0]
    expected = torch.autograd.grad(logp[:, ids].where(counts[:, None], 0.0), x, upstream.double())
    assert_close(actual, expected[0])


def test_mlps_and_tiles():
    x = normal(2, 3, H).requires_grad_()
    gate, up, down = normal(5, H), normal(5, H), normal(H, 5)
    expected = F.linear(F.silu(F.linear(x, gate) * 0.5) * F.linear(x, up) * 2.0, down)
    assert_close(ops.LigerMLPFunction.apply(x, gate, up, down, 0.5, 2.0), expected)
    both = torch.cat([F.linear(x, gate), F.linear(x, up)], -1)
    fused = ops.LigerFusedGateUpSiLUMulFunction.apply(both, True)
    assert_close(fused, ops.LigerSiLUMulFunction.apply(*both.chunk(2, -1)))
    layer = torch.nn.Linear(H, H).double()
    for tiled in (
        ops.apply_tiled_mlp(lambda module, tile: module(tile), layer, x, 2),
        ops.LigerTiledMLPFunction.apply(lambda module, tile: module(tile), layer, x, 2, None),
    ):
        assert_close(tiled, layer(x))
        found = torch.autograd.grad(tiled.square().sum(), [x, *layer.parameters()])
        plain = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
        assert_close(found, plain)


def test_every_function_is_in_its_submodule():
    for (where, name), function in TABLE.items():
        module = importlib.import_module(f"liger_kernel.ops.{where}")
        assert getattr(module, name) is getattr(ops, name)
        assert getattr(ops, name).apply is function
    assert importlib.util.find_spec("liger_kernel.ops.swiglu") is not None


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("LigerFusedMoEFunction", "liger-moe"),
        ("LigerMHCPreFunction", "liger-lab"),
        ("LigerAttnResFunction", "liger-lab"),
        ("LigerMultiTokenAttentionFunction", "liger-lab"),
    ],
)
def test_functions_without_a_counterpart_say_so(name, package):
    with pytest.raises(NotImplementedError, match=f"{name}: .*{package}"):
        getattr(ops, name).apply(None)


def test_settings_of_a_row():
    for n, expected in ((1, (1, 4)), (2047, (2048, 8)), (8192, (8192, 16)), (65536, (65536, 32))):
        assert utils.calculate_settings(n) == expected
    with pytest.raises(RuntimeError, match="65537"):
        utils.calculate_settings(65537)


def test_helpers():
    @utils.ensure_contiguous
    def seen(ctx, x, *, y, z):
        return x.is_contiguous(), y.is_contiguous(), z

    t = torch.ones(2, 3).t()
    assert seen(None, t, y=t, z=1) == (True, True, 1)
    assert utils.compare_version("torch", operator.ge, "2.11.0")
    assert not utils.compare_version("no_such_package", operator.ge, "1.0")
    with utils.device_context("cpu"):
        pass
    forward, backward = utils.get_amp_custom_fwd_bwd()
    assert callable(forward(lambda ctx: None))
    assert callable(backward(lambda ctx: None))
    assert utils.is_hip() == (torch.version.hip is not None)


def test_front_of_functions_takes_the_choice_of_an_implementation():
    from liger_kernel import functional as front

    x, weight = normal(3, N), normal(N)
    expected = ops.LigerRMSNormFunction.apply(x, weight, 1e-6)
    assert_close(front.rms_norm(x, weight, impl="triton", backend=None), expected)
    assert_close(front.rms_norm(x=x, weight=weight, eps=1e-6, casting_mode="llama"), expected)
    assert_close(front.layer_norm(x, weight), F.layer_norm(x, (N,), weight, eps=1e-6))
    assert_close(front.softmax(x, mode="fast"), x.softmax(-1))
    logits = normal(M, V)
    assert_close(front.cross_entropy(logits, labels())[0], F.cross_entropy(logits, labels()))
    with pytest.raises(TypeError, match="engine"):
        front.rms_norm(x, weight, engine="triton")
    assert all(callable(getattr(front, name)) for name in front.__all__)
