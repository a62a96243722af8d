"""Functions and modules beside formulas, forward and gradients; their options and errors."""

import importlib
import inspect

import formulas
import pytest
import torch
import torch.nn.functional as F
from compat_cases import (
    CONFIG,
    FUNCTIONS,
    GELU,
    MODULES,
    ROTATIONS,
    H,
    M,
    N,
    V,
    labels,
    made,
    normal,
)
from liger_kernel import transformers as liger
from liger_kernel.transformers import functional
from torch.testing import assert_close


def title(case):
    options = "-".join(f"{name}={value}" for name, value in case.options.items())
    return f"{case.name}-{options}-{len(case.inputs.split())}"


def compare(actual, expected, ours, theirs):
    actual = actual if isinstance(actual, tuple) else (actual,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float64
        assert_close(a, e)
    upstream = [torch.randn_like(e) for e in expected]
    for outputs, leaves in ((actual, ours), (expected, theirs)):
        torch.autograd.backward(outputs, upstream, inputs=leaves)
    for leaf, other in zip(ours, theirs, strict=True):
        assert_close(leaf.grad, other.grad)
        leaf.grad = other.grad = None


def leaves(inputs):
    return [x for x in inputs if x.requires_grad]


@pytest.mark.parametrize("case", FUNCTIONS, ids=title)
def test_function_is_its_formula(case):
    torch.manual_seed(0)
    ours, theirs = made(case)
    function = getattr(functional, f"liger_{case.name}")
    before = [x.detach().clone() for x in ours]
    compare(
        function(*ours, *case.arguments, **case.options), case.formula(*theirs),
        leaves(ours), leaves(theirs),
    )  # fmt: skip
    # in_place options write nothing
    for x, copy in zip(ours, before, strict=True):
        assert torch.equal(x, copy)


@pytest.mark.parametrize("case", MODULES, ids=title)
def test_module_is_its_formula(case):
    torch.manual_seed(0)
    ours, theirs = made(case)
    module = getattr(liger, case.name)(*case.arguments, **case.options).double()
    parameters = list(module.parameters())
    actual = module(*ours)
    gradients = []
    expected = case.formula(module, *theirs)
    compare(actual, expected, leaves(ours), leaves(theirs))
    for output in (module(*ours), case.formula(module, *theirs)):
        outputs = output if isinstance(output, tuple) else (output,)
        total = sum(x.square().sum() for x in outputs)
        gradients.append(torch.autograd.grad(total, parameters) if parameters else ())
    assert_close(*gradients)
    assert case.name in repr(module)


@pytest.mark.parametrize("case", ROTATIONS, ids=title)
def test_rotation_is_its_formula(case):
    torch.manual_seed(0)
    ours, theirs = made(case)
    where, name = case.name.split(".")
    function = getattr(importlib.import_module(f"liger_kernel.transformers.{where}"), name)
    compare(function(*ours, *case.arguments), case.formula(*theirs), leaves(ours), leaves(theirs))


def test_sparsemax_lies_on_the_simplex_nearest_to_its_input():
    x = normal(4, 7).requires_grad_()
    y = liger.LigerSparsemax()(x)
    assert_close(y.sum(-1), torch.ones(4).double())
    assert torch.equal(y, functional.liger_sparsemax(x, dim=1))
    assert (y >= 0).all()
    # where it is positive it differs from x by one number a row
    shift = (x - y).where(y > 0, float("nan"))
    assert_close(shift.nanmean(-1, keepdim=True).expand_as(shift)[y > 0], shift[y > 0])


def test_vision_rotation_of_llama4_takes_frequencies_of_any_shape_and_real_ones():
    q, k, angle = normal(2, 3, 1, 8), normal(2, 3, 1, 8), normal(3, 4)
    freqs = torch.polar(torch.ones(3, 4).double(), angle)
    rotate = liger.liger_llama4_vision_rotary_pos_emb
    expected = liger.liger_llama4_text_rotary_pos_emb(q, k, freqs.expand(2, 3, 4))
    for shape in ((3, 4), (3, 1, 4), (1, 3, 1, 4)):
        assert_close(rotate(q, k, freqs.view(shape)), expected)
    real = torch.view_as_real(freqs)[..., 0].bfloat16()
    assert_close(rotate(q, k, real)[0], q * real.double().repeat_interleave(2, -1)[:, None])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropies_return_what_is_asked_for_besides(reduction):
    x, w, t = normal(M, H), normal(V, H), labels()
    logits, counts = F.linear(x, w), t != -100
    options = {
        "lse_square_scale": 0.1, "reduction": reduction, "return_z_loss": True,
        "return_token_accuracy": True, "return_predicted_tokens": True,
    }  # fmt: skip
    plain = functional.liger_cross_entropy(logits, t, reduction=reduction, lse_square_scale=0.1)
    z = (0.1 * logits.logsumexp(-1).square()).where(counts, 0.0)
    correct = (logits.argmax(-1) == t).float()
    for output in (
        functional.liger_cross_entropy(logits, t, **options),
        functional.liger_fused_linear_cross_entropy(x, w, t, **options),
        liger.LigerCrossEntropyLoss(**options)(logits, t),
        liger.LigerFusedLinearCrossEntropyLoss(**options)(w, x, t),
    ):
        assert isinstance(output, functional.CrossEntropyOutput)
        assert_close(output.loss, plain)
        totals = {"none": z, "sum": z.sum(), "mean": z.sum() / counts.sum()}
        assert_close(output.z_loss, totals[reduction])
        rate = correct if reduction == "none" else correct.sum() / counts.sum()
        assert_close(output.token_accuracy, rate, check_dtype=False)
        assert torch.equal(output.predicted_tokens, logits.argmax(-1).where(counts, -1))


def test_class_weights():
    x, w, t, classes = normal(M, H), normal(V, H), labels(), torch.rand(V).double()
    expected = F.cross_entropy(F.linear(x, w), t, classes)
    assert_close(functional.liger_cross_entropy(F.linear(x, w), t, classes), expected)
    loss = functional.liger_fused_linear_cross_entropy(x, w, t, ce_weight=classes)
    assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_keep_the_dtype_of_their_input(dtype):
    x, weight = torch.randn(3, N).to(dtype), torch.ones(N)
    for casting_mode in ("llama", "gemma", "none", 0, 1, -1):
        assert functional.liger_rms_norm(x, weight, 1e-6, 0.0, casting_mode).dtype == dtype
        y, s = functional.liger_fused_add_rms_norm(x, x, weight, 1e-6, 0.0, casting_mode)
        assert y.dtype == s.dtype == dtype


def test_variants_of_rms_norm_have_their_defaults():
    variants = importlib.import_module("liger_kernel.transformers.rms_norm")
    gemma = {"Gemma", "Gemma2", "Gemma3", "MuseGlimmerTextCentered", "Qwen3Next"}
    for name in ("Gemma4", "MuseGlimmer", "Olmo2", "Glm4", *gemma):
        norm = getattr(variants, f"LigerRMSNormFor{name}")(N)
        assert norm.offset == (1.0 if name in gemma else 0.0)
        assert norm.casting_mode == ("llama" if name in ("Olmo2", "Glm4") else "gemma")
        assert norm.in_place == (name == "Gemma")
        assert torch.equal(norm.weight, torch.full((N,), 1.0 - norm.offset))


WRONG = [
    (AssertionError, lambda: liger.LigerRMSNorm(N, init_fn="normal")),
    (AssertionError, lambda: liger.LigerLayerNorm(N, init_fn="normal")),
    (AssertionError, lambda: functional.liger_rms_norm(torch.ones(2, N), None, 1e-6, 0.0, "x")),
    (AssertionError, lambda: liger.LigerGroupNorm(6, 4)),
    (AssertionError, lambda: liger.LigerGroupNorm(6, 3)(torch.ones(2, 6))),
    (AssertionError, lambda: liger.LigerCrossEntropyLoss(label_smoothing=1.1)),
    (AssertionError, lambda: liger.LigerCrossEntropyLoss(reduction="median")),
    (AssertionError, lambda: liger.LigerCrossEntropyLoss(softcap=0.0)),
    (AssertionError, lambda: liger.LigerFusedLinearCrossEntropyLoss(reduction="median")),
    (AssertionError, lambda: liger.LigerFusedLinearJSD(temperature=0)),
    (AssertionError, lambda: liger.LigerFusedLinearKLDivLoss(temperature=0)),
    (AssertionError, lambda: liger.LigerJSD()(normal(M, V), normal(M, V), labels()[:2])),
    (ValueError, lambda: liger.LigerSwiGLUMLP(GELU)),
    (ValueError, lambda: liger.LigerPhi3SwiGLUMLP(GELU)),
    (ValueError, lambda: liger.LigerTiledGEGLUMLP(CONFIG)),
    (ValueError, lambda: liger.LigerVocabParallelCrossEntropy(reduction="mean")),
    (ValueError, lambda: liger.LigerVocabParallelCrossEntropy(label_smoothing=1.0)),
    (ValueError, lambda: liger.LigerVocabParallelCrossEntropy()(normal(M, V), labels())),
    (ValueError, lambda: liger.LigerFusedLinearKLDivLoss("none")(
        normal(M, H), normal(V, H), normal(M, V).softmax(-1))),
    (ValueError, lambda: functional.liger_fused_linear_scaled_cross_entropy_tp(
        normal(M, H), normal(V, H), labels(), None, temperature=0.0)),
    (ValueError, lambda: functional.liger_fused_linear_cross_entropy(
        normal(M, H), normal(V, H), labels(), chunk_mem_const=0)),
    (NotImplementedError, lambda: liger.LigerExperts(CONFIG)),
    (NotImplementedError, lambda: liger.LigerMHC(None, hc=4, c=8)),
    (NotImplementedError, lambda: functional.liger_attn_res(None, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "call"), WRONG, ids=map(str, range(len(WRONG))))
def test_wrong_options_raise(error, call):
    with pytest.raises(error):
        call()


def test_missing_names_say_which_package_will_have_them():
    with pytest.raises(NotImplementedError, match=r"LigerExperts: .*liger-moe"):
        liger.LigerExperts(CONFIG)
    with pytest.raises(NotImplementedError, match=r"liger_mhc_pre: .*liger-lab"):
        functional.liger_mhc_pre(None, None)


def test_there_are_thirty_functions():
    names = [n for n, f in vars(functional).items() if n.startswith("liger_") and callable(f)]
    extra = {"liger_fused_ce_tvd", "liger_fused_gate_up_swiglu", "liger_llama4_rope"}
    assert len({n for n in names if inspect.isfunction(getattr(functional, n))} - extra) == 30


def test_documented_example():
    """`LigerFusedLinearCrossEntropyLoss()(weight, input, target)` of a linear layer."""
    linear, x = torch.nn.Linear(H, V, bias=False), torch.randn(M, H)
    loss = liger.LigerFusedLinearCrossEntropyLoss()(linear.weight, x, labels())
    loss.backward()
    expected = torch.autograd.grad(F.cross_entropy(linear(x), labels()), linear.weight)[0]
    assert_close(linear.weight.grad, expected)


def test_fifth_argument_of_a_rotary_function_may_be_the_dimension():
    q, k, table = normal(2, 3, 2, 8), normal(2, 3, 1, 8), normal(1, 3, 8)
    actual = liger.liger_rotary_pos_emb(q, k, table, table, 2)
    assert_close(actual, formulas.rotated(q, k, table, table, dim=2))
