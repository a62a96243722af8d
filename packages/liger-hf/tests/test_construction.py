"""Models that come patched: auto classes, and apply_liger_kernel_to_<model type>."""

import liger_hf
import pytest
import torch
import transformers
import zoo
from families import SIZES, assert_same_step, build, gradients, tokens
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama import modeling_llama

LLAMA = [kind for kind in vars(modeling_llama).values() if isinstance(kind, type)]


def patched(model: torch.nn.Module) -> bool:
    return any("forward" in vars(module) for module in model.modules())


def loss(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=tokens(), labels=tokens()).loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_class(dtype, tmp_path):
    plain = build("qwen3")
    plain.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    auto = liger_hf.AutoLigerKernelForCausalLM
    model = auto.from_pretrained(tmp_path, dtype=dtype, rope=False)
    assert type(model) is type(plain)
    assert "forward" in vars(model.model.norm)
    assert "forward" not in vars(model.model.layers[0].self_attn)
    rtol = 1e-5 if dtype is torch.float32 else 2e-2
    assert_same_step(gradients(model.train(), loss), gradients(plain.train(), loss), rtol=rtol)
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert patched(model)
    assert not info["missing_keys"]
    assert patched(auto.from_config(model.config, mlp=False))
    with pytest.raises(OSError, match="designed to be instantiated"):
        auto()


def test_subclass_of_an_auto_class(tmp_path):
    class Mine(liger_hf.AutoLigerKernelForCausalLM):
        pass

    class MineToo(Mine):
        pass

    build("llama").save_pretrained(tmp_path)
    model = MineToo.from_pretrained(tmp_path)
    assert type(model) is LlamaForCausalLM
    assert patched(model)
    assert patched(Mine.from_config(model.config))


def test_auto_class_of_images_and_text():
    config = zoo.tiny("image-text-to-text", "qwen2_5_vl").config
    model = liger_hf.AutoLigerKernelForImageTextToText.from_config(config)
    assert "forward" in vars(model.lm_head)


def test_family_is_patched_as_it_is_made(tmp_path):
    plain = build("llama")
    plain.save_pretrained(tmp_path)
    family = liger_hf.apply_liger_kernel_to_llama(mlp=False)
    model = LlamaForCausalLM(plain.config)
    assert "forward" in vars(model.lm_head)
    assert "forward" not in vars(model.model.layers[0].mlp)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert len(liger_hf.report(half, mlp=False).patched) == 9 == sum(map(bool, vars_of(half)))
    assert_same_step(gradients(loaded, loss), gradients(plain, loss))
    for kind in (LlamaModel, transformers.LlamaForSequenceClassification):
        assert patched(kind(plain.config))
    assert not patched(build("mistral"))
    family.revert()
    assert not patched(LlamaForCausalLM(plain.config))
    assert patched(model)


def vars_of(model: torch.nn.Module) -> list[bool]:
    return ["forward" in vars(module) for name, module in model.named_modules() if name]


def test_second_call_replaces_the_first_and_revert_is_exact():
    before = {kind: dict(vars(kind)) for kind in LLAMA}
    config = LlamaConfig(**SIZES)
    liger_hf.apply_liger_kernel_to_llama(mlp=False)
    second = liger_hf.apply_liger_kernel_to_llama(norms=False, rope=False, loss=False, mask=False)
    model = LlamaForCausalLM(config)
    rows = liger_hf.report(model, norms=False, rope=False, loss=False, mask=False).rows
    assert {row.op for row in rows} == {"liger_activations.glu_linear"}
    assert "forward" not in vars(model.model.norm)
    liger_hf.revert_liger_kernel_to_llama()
    assert not second.active
    liger_hf.revert_liger_kernel_to_llama()
    for kind in LLAMA:
        # transformers itself keeps answers on its classes
        assert "__init__" not in vars(kind).keys() - before[kind].keys()
        assert all(vars(kind)[name] is value for name, value in before[kind].items())
    with liger_hf.apply_liger_kernel_to_llama():
        assert patched(LlamaForCausalLM(config))
    assert not patched(LlamaForCausalLM(config))


def test_constructor_wrapped_later_survives_revert(monkeypatch):
    config = LlamaConfig(**SIZES)
    family = liger_hf.apply_liger_kernel_to_llama()
    ours = LlamaForCausalLM.__init__

    def wrapper(self, config):
        ours(self, config)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "__init__", wrapper)
        family.revert()
        assert LlamaForCausalLM.__init__ is wrapper
        assert not patched(LlamaForCausalLM(config))
    # what was beneath the wrapper passes on as well
    assert not patched(LlamaForCausalLM(config))
    LlamaForCausalLM.__init__ = ours.__wrapped__


def test_there_is_a_function_for_every_type():
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT,
    )

    for model_type in {*CAUSAL, *IMAGE_TEXT}:
        name = model_type.replace("-", "_").replace(".", "_")
        assert callable(getattr(liger_hf, f"apply_liger_kernel_to_{name}"))
        assert callable(getattr(liger_hf, f"revert_liger_kernel_to_{name}"))
    with pytest.raises(AttributeError, match="apply_liger_kernel_to_nothing"):
        _ = liger_hf.apply_liger_kernel_to_nothing
    with pytest.raises(TypeError, match=r"apply_liger_kernel_to_qwen3: swiglu is no flag"):
        liger_hf.apply_liger_kernel_to_qwen3(swiglu=True)
    with pytest.raises(AttributeError, match="nothing_at_all"):
        _ = liger_hf.nothing_at_all
