"""The functions that patch models, as tools and transformers' own tests use them."""

import copy
import inspect
import logging
import pickle

import liger_hf
import pytest
import torch
from liger_hf import Report
from liger_kernel.transformers import (
    AutoLigerKernelForCausalLM,
    _apply_liger_kernel,
    _apply_liger_kernel_to_instance,
    apply_liger_kernel_to_gemma,
    apply_liger_kernel_to_granite,
    apply_liger_kernel_to_llama,
    apply_liger_kernel_to_llava,
    apply_liger_kernel_to_pixtral,
    apply_liger_kernel_to_qwen2,
    liger_rotary_pos_emb,
    monkey_patch,
    trainer_integration,
)
from liger_kernel.transformers.loss import liger_fixed_cross_entropy
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
from tiny import config, llama
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)
from transformers.loss import loss_utils
from transformers.models.llama import modeling_llama

IDS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))


def loss_and_gradients(model):
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss
    return loss, torch.autograd.grad(loss, list(model.parameters()))


def is_patched(model):
    """Head, MLP, norm, attention."""
    layer = model.model.layers[0]
    parts = (model.lm_head, layer.mlp, model.model.norm, layer.self_attn)
    return tuple("forward" in vars(part) for part in parts)


def test_instance_is_patched_and_computes_the_same():
    model, plain = llama(), llama()
    assert modeling_llama.apply_rotary_pos_emb is not liger_rotary_pos_emb
    assert "Liger" not in repr(model)
    _apply_liger_kernel_to_instance(model=model)
    assert modeling_llama.apply_rotary_pos_emb is liger_rotary_pos_emb
    assert "LigerRMSNorm" in repr(model.model.norm)
    assert "LigerSwiGLUMLP" in repr(model.model.layers[0].mlp)
    assert is_patched(model) == (True,) * 4
    assert_close(loss_and_gradients(model), loss_and_gradients(plain))
    # again, on a model of the same family: its rotary function is ours by now
    second = llama()
    _apply_liger_kernel_to_instance(model=second)
    assert_close(loss_and_gradients(second), loss_and_gradients(plain))


FLAGS = {
    "fused_linear_cross_entropy": (False, True, True, True),
    "swiglu": (True, False, True, True),
    "rms_norm": (True, True, False, True),
    "rope": (True, True, True, False),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_leave_layers_alone(flag):
    model = llama()
    apply_liger_kernel_to_llama(model=model, **{flag: False})
    assert is_patched(model) == FLAGS[flag]
    assert ("LigerRMSNorm" in repr(model.model.norm)) == (flag != "rms_norm")
    swapped = modeling_llama.apply_rotary_pos_emb is liger_rotary_pos_emb
    assert swapped == (flag != "rope")
    assert_close(loss_and_gradients(model), loss_and_gradients(llama()))


def test_flags_come_in_order():
    model = llama()
    apply_liger_kernel_to_llama(False, False, False, True, False, model)
    assert is_patched(model) == (False, False, True, False)


def test_models_made_afterwards_are_patched():
    apply_liger_kernel_to_llama(rms_norm=False)
    model = LlamaForCausalLM(config())
    assert is_patched(model) == (True, True, False, True)
    assert "forward" not in vars(Qwen2ForCausalLM(Qwen2Config(**_small())).lm_head)
    # older transformers call it by type
    trainer_integration._apply_liger_kernel("qwen2", swiglu=False, geglu=True)
    assert is_patched(Qwen2ForCausalLM(Qwen2Config(**_small()))) == (True, False, True, True)


def _small():
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "vocab_size")  # fmt: skip
    return {name: getattr(config(), name) for name in names}


def test_cross_entropy_of_logits():
    model = llama()
    apply_liger_kernel_to_llama(
        model=model, cross_entropy=True, fused_linear_cross_entropy=False, rope=False
    )
    assert loss_utils.fixed_cross_entropy is liger_fixed_cross_entropy
    assert is_patched(model) == (False, True, True, False)
    ours = loss_and_gradients(model)
    items = model(input_ids=IDS, labels=IDS, num_items_in_batch=torch.tensor(5)).loss
    assert_close(items, ours[0] * 12 / 5)
    assert model(input_ids=IDS, labels=IDS).logits.shape == (2, 7, 32)
    logits = model(input_ids=IDS).logits[:, :-1]
    assert_close(
        ours[0], torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    )


@pytest.mark.parametrize(
    "function", [apply_liger_kernel_to_llama, apply_liger_kernel_to_granite,
                 apply_liger_kernel_to_llava]
)  # fmt: skip
def test_two_cross_entropies_at_once_are_refused(function):
    with pytest.raises(AssertionError, match="cannot both be True"):
        function(cross_entropy=True, fused_linear_cross_entropy=True)


def test_unknown_flags(caplog):
    with pytest.raises(TypeError, match="geglu"):
        apply_liger_kernel_to_llama(geglu=True)
    model = llama()
    with caplog.at_level(logging.WARNING):
        _apply_liger_kernel_to_instance(model=model, geglu=True, no_such_flag=1)
    assert "geglu, no_such_flag" in caplog.text
    assert is_patched(model) == (True,) * 4


def test_gemma():
    model = GemmaForCausalLM(GemmaConfig(**_small(), head_dim=8, hidden_act="gelu_pytorch_tanh"))
    expected = loss_and_gradients(model)
    apply_liger_kernel_to_gemma(model=model)
    assert "LigerGEGLUMLP" in repr(model.model.layers[0].mlp)
    assert_close(loss_and_gradients(model), expected)


def test_types_without_a_function_of_their_own(caplog):
    model = StableLmForCausalLM(StableLmConfig(**_small()))
    expected = loss_and_gradients(model)
    assert "stablelm" not in MODEL_TYPE_TO_APPLY_LIGER_FN
    _apply_liger_kernel_to_instance(model=model)
    assert "LigerSwiGLUMLP" in repr(model)
    assert_close(loss_and_gradients(model), expected)
    with caplog.at_level(logging.INFO):
        _apply_liger_kernel("no_such_type")
        _apply_liger_kernel("")
        _apply_liger_kernel_to_instance(model=torch.nn.Linear(2, 2))
        apply_liger_kernel_to_pixtral()
    assert "no_such_type" in caplog.text
    assert "pixtral" in caplog.text


def test_nothing_to_replace_is_no_error(caplog):
    model = llama()
    names = ("rope", "rms_norm", "swiglu", "fused_linear_cross_entropy")
    apply_liger_kernel_to_llama(model=model, **dict.fromkeys(names, False))
    assert is_patched(model) == (False,) * 4
    assert caplog.records[-1].levelno == logging.WARNING


def test_later_models_are_patched_like_the_first():
    rows = []
    for _ in range(2):
        model = llama()
        rows.append([row.op for row in liger_hf.report(model).rows])
        apply_liger_kernel_to_llama(model=model)
        assert is_patched(model) == (True,) * 4
    assert rows[0] == rows[1]
    before = {name: dict(vars(m)) for name, m in llama().named_modules()}
    liger_hf.revert(model)
    assert {name: vars(m).keys() for name, m in model.named_modules()} == {
        name: attributes.keys() for name, attributes in before.items()
    }
    assert "LigerRMSNorm" not in repr(model)


def test_patched_models_can_be_copied_and_pickled():
    model = llama()
    apply_liger_kernel_to_llama(model=model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert "LigerRMSNorm" in repr(other.model.norm)
        assert_close(loss_and_gradients(other), loss_and_gradients(model))


def test_auto_class(tmp_path):
    plain = llama()
    plain.save_pretrained(tmp_path)
    model = AutoLigerKernelForCausalLM.from_pretrained(
        tmp_path, rms_norm=False, geglu=True, dtype=torch.float32
    )
    assert type(model) is LlamaForCausalLM
    assert is_patched(model) == (True, True, False, True)
    assert_close(loss_and_gradients(model), loss_and_gradients(plain))
    made = AutoLigerKernelForCausalLM.from_config(config(), fused_linear_cross_entropy=False)
    assert is_patched(made)[:3] == (False, True, True)
    model, info = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert is_patched(model)[0]
    assert not info["missing_keys"]
    assert issubclass(AutoLigerKernelForCausalLM, AutoModelForCausalLM)


def test_every_type_has_its_function():
    """As callers look them up: by type, then by the parameters."""
    assert len(MODEL_TYPE_TO_APPLY_LIGER_FN) == 53
    functions = {f.__name__: f for f in MODEL_TYPE_TO_APPLY_LIGER_FN.values()}
    assert len(functions) == 45
    for name, function in functions.items():
        assert getattr(monkey_patch, name) is function
        parameters = inspect.signature(function).parameters
        assert parameters["model"].default is None
        assert len({"swiglu", "geglu", "relu_squared"} & parameters.keys()) <= 1
    of_glm = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN["glm4"]).parameters
    assert (of_glm["rope"].default, of_glm["rms_norm"].default) == (False, True)
    apply_liger_kernel_to_qwen2()


def test_flags_of_liger_hf(monkeypatch):
    """Each is asked for by one of ours."""
    names = [
        n for n, p in inspect.signature(liger_hf.apply).parameters.items() if p.default is True
    ]
    assert set(names) == monkey_patch.FLAGS.keys()
    asked = []
    monkeypatch.setattr(liger_hf, "apply", lambda model, **flags: asked.append(flags) or Report(()))
    model = llama()
    off = {"swiglu": {"mlp", "moe"}, "rms_norm": {"norms"}, "rope": {"rope", "mask"}}
    for flag, expected in {**off, "fused_linear_cross_entropy": {"loss"}}.items():
        apply_liger_kernel_to_llama(model=model, **{flag: False})
        assert {name for name, on in asked.pop().items() if not on} == expected


def test_layer_norms_and_experts():
    options = {**_small(), "num_local_experts": 4, "num_experts_per_tok": 2}
    for plain in (
        MixtralForCausalLM(MixtralConfig(**options)),
        StableLmForCausalLM(StableLmConfig(**_small())),
    ):
        expected = loss_and_gradients(plain)
        _apply_liger_kernel_to_instance(model=plain, swiglu=True)
        assert_close(loss_and_gradients(plain), expected)
    assert "LigerLayerNorm" in repr(plain.model.norm)
