"""The Megatron layers, and the patch on stand-ins for the modules of Megatron-Core."""

import sys
import types
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from liger_kernel.megatron import (
    LigerMegatronCrossEntropy,
    LigerMegatronRMSNorm,
    LigerMegatronSwiGLU,
    apply_liger_kernel_to_megatron,
)
from torch.testing import assert_close

CONFIG = SimpleNamespace(normalization="RMSNorm", sequence_parallel=True)


def rms(x, w, eps=1e-5):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


def test_rms_norm():
    x = torch.randn(3, 2, 8)
    norm = LigerMegatronRMSNorm(config=CONFIG, hidden_size=8)
    assert_close(norm(x), rms(x, torch.ones(8)))
    assert norm.weight.sequence_parallel
    centered = SimpleNamespace(layernorm_zero_centered_gamma=True)
    norm = LigerMegatronRMSNorm(centered, (8,), eps=1e-3, persist_layer_norm=True)
    assert torch.equal(norm.weight, torch.zeros(8))
    assert_close(norm(x), rms(x, torch.ones(8), 1e-3))
    assert not norm.weight.sequence_parallel
    with pytest.raises(ValueError, match="LayerNorm"):
        LigerMegatronRMSNorm(SimpleNamespace(normalization="LayerNorm"), 8)


def smoothed(logits, target, share):
    """Megatron's: (1 - a - a / (V - 1)) nll - a / (V - 1) sum log p."""
    log_p, V = logits.log_softmax(-1), logits.shape[-1]
    nll = -log_p.gather(-1, target[..., None])[..., 0]
    return (1 - share - share / (V - 1)) * nll - share / (V - 1) * log_p.sum(-1)


def test_cross_entropy():
    logits, target = torch.randn(3, 2, 11).double(), torch.randint(0, 11, (3, 2))
    assert_close(LigerMegatronCrossEntropy()(logits, target), smoothed(logits, target, 0.0))
    loss = LigerMegatronCrossEntropy(label_smoothing=0.1)(logits, target, tp_group=None)
    assert_close(loss, smoothed(logits, target, 0.1))
    alone = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    assert_close(LigerMegatronCrossEntropy(label_smoothing=0.1)(logits, target, alone), loss)


def test_swiglu():
    x = torch.randn(3, 2, 8).requires_grad_()
    gate, up = x.chunk(2, -1)
    assert_close(LigerMegatronSwiGLU()(x), F.silu(gate) * up)
    assert_close(LigerMegatronSwiGLU(in_place=True)(x[0]), (F.silu(gate) * up)[0])
    calls = []
    module = LigerMegatronSwiGLU(lambda *a: calls.append(a) or a[0])
    for arguments in ((torch.ones(8),), (None, True), (None, False, True)):
        assert module(x, *arguments) is x
        with pytest.raises(RuntimeError, match="fallback_impl"):
            LigerMegatronSwiGLU()(x, *arguments)
    assert len(calls) == 3
    for shape in ((8,), (3, 7)):
        with pytest.raises(ValueError, match="2 N"):
            LigerMegatronSwiGLU()(torch.ones(shape))


@pytest.fixture
def megatron(monkeypatch):
    """Modules with the names that are replaced, and copies that callers have bound."""

    def add(path, **names):
        module = types.ModuleType(path)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, path, module)
        return module

    class LocalSpecProvider:
        def layer_norm(self, rms_norm=False, for_qk=False):
            return "original"

    class WrappedTorchNorm:
        def __init__(self, config, hidden_size, eps=1e-5):
            self.hidden_size = hidden_size

    class SwiGLUFunction:
        @staticmethod
        def apply(input, fp8_input_store, cpu_offload_input):
            return "original"

    def fused(vocab_parallel_logits, target, tp_group):
        return "original"

    def unfused(vocab_parallel_logits, target, label_smoothing=0.0, tp_group=None):
        return "original"

    core = "megatron.core"
    for package in ("megatron", core, f"{core}.models", f"{core}.transformer", f"{core}.fusions",
                    f"{core}.models.common", f"{core}.models.common.language_module"):  # fmt: skip
        add(package, __path__=[])
    return SimpleNamespace(
        backends=add(f"{core}.models.backends", LocalSpecProvider=LocalSpecProvider,
                     _fused_ce=fused),
        norm=add(f"{core}.transformer.torch_norm", WrappedTorchNorm=WrappedTorchNorm),
        block=add(f"{core}.transformer.transformer_block", LayerNormImpl=WrappedTorchNorm),
        fused=add(f"{core}.fusions.fused_cross_entropy", fused_vocab_parallel_cross_entropy=fused),
        language=add(f"{core}.models.common.language_module.language_module",
                     fused_vocab_parallel_cross_entropy=fused),
        parallel=add(f"{core}.tensor_parallel", vocab_parallel_cross_entropy=unfused, __path__=[]),
        unfused=add(f"{core}.tensor_parallel.cross_entropy", vocab_parallel_cross_entropy=unfused),
        swiglu=add(f"{core}.fusions.fused_bias_swiglu", SwiGLUFunction=SwiGLUFunction),
    )  # fmt: skip


def test_norms_are_replaced(megatron):
    apply_liger_kernel_to_megatron()
    spec = megatron.backends.LocalSpecProvider()
    assert spec.layer_norm(rms_norm=True, for_qk=True) is LigerMegatronRMSNorm
    assert spec.layer_norm() == "original"
    block = megatron.block.LayerNormImpl
    # Megatron makes instances of classes only
    assert isinstance(block, type)
    assert isinstance(block(config=CONFIG, hidden_size=8, eps=1e-6), LigerMegatronRMSNorm)
    other = block(SimpleNamespace(normalization="LayerNorm"), 8)
    assert isinstance(other, megatron.norm.WrappedTorchNorm)
    assert megatron.fused.fused_vocab_parallel_cross_entropy(None, None, None) == "original"
    apply_liger_kernel_to_megatron()
    assert megatron.block.LayerNormImpl is block


def test_norm_of_other_libraries_is_kept(megatron):
    megatron.block.LayerNormImpl = kept = type("TENorm", (), {})
    apply_liger_kernel_to_megatron()
    assert megatron.block.LayerNormImpl is kept


def test_cross_entropies_are_replaced_where_they_are_called(megatron):
    apply_liger_kernel_to_megatron(rms_norm=False, cross_entropy=True)
    logits, target = torch.randn(3, 2, 11), torch.randint(0, 11, (3, 2))
    expected = smoothed(logits, target, 0.0)
    for function in (
        megatron.fused.fused_vocab_parallel_cross_entropy,
        megatron.language.fused_vocab_parallel_cross_entropy,
        megatron.backends._fused_ce,
    ):
        assert_close(function(logits, target, None), expected)
    for function in (
        megatron.unfused.vocab_parallel_cross_entropy,
        megatron.parallel.vocab_parallel_cross_entropy,
    ):
        assert_close(function(logits, target), expected)
        assert_close(function(logits, target, 0.1), smoothed(logits, target, 0.1))
    assert megatron.block.LayerNormImpl is megatron.norm.WrappedTorchNorm


def test_swiglu_is_replaced(megatron):
    apply_liger_kernel_to_megatron(rms_norm=False, swiglu=True)
    function, x = megatron.swiglu.SwiGLUFunction, torch.randn(3, 8)
    assert_close(function.apply(x, False, False), F.silu(x[:, :4]) * x[:, 4:])
    assert function.apply(x, True, False) == "original"


@pytest.mark.parametrize("flag", ["rms_norm", "cross_entropy", "swiglu"])
def test_without_megatron(flag):
    with pytest.raises(ImportError, match="Megatron-Core"):
        apply_liger_kernel_to_megatron(**{"rms_norm": False, flag: True})
