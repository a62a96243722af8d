"""Calls as other projects make them: names, positions, keywords, ways to look functions up."""

import functools
import importlib
import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss, LigerFusedLinearJSDLoss
from liger_kernel.transformers.model import loss_utils
from tiny import config, llama
from torch.testing import assert_close
from transformers import LlamaForCausalLM

IDS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))


def name(path):
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(f"liger_kernel.{module}"), attribute)


FACTORY = (
    "gemma", "gemma2", "gemma3", "gemma3_text", "glm4", "glm4v", "granite", "llama", "llava",
    "mistral", "mixtral", "mllama", "olmo2", "paligemma", "phi3", "qwen2", "qwen2_vl",
    "qwen2_5_vl", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe", "gpt_oss",
    "qwen3_5_text", "qwen3_5_moe_text",
)  # fmt: skip
# what each project imports, as of 2026
IMPORTS = {
    "axolotl": """
        transformers.cross_entropy.LigerCrossEntropyLoss transformers.functional.liger_cross_entropy
        transformers.layer_norm.LigerLayerNorm transformers.rms_norm.LigerRMSNorm
        transformers.geglu.LigerGEGLUMLP transformers.swiglu.LigerSwiGLUMLP
        transformers.rope.liger_rotary_pos_emb
        transformers.fused_linear_cross_entropy.LigerFusedLinearCrossEntropyLoss
        transformers.model.loss_utils.LigerForCausalLMLoss
        transformers.monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN
        ops.utils.calculate_settings ops.utils.ensure_contiguous
        ops.grpo_loss.fused_selective_log_softmax utils.is_npu_available utils.PEFT_AVAILABLE
        chunked_loss.fused_linear_distillation.LigerFusedLinearDistillationBase
        transformers.trainer.orpo_trainer._FSDPForwardRedirection""",
    "LLaMA-Factory": " ".join(f"transformers.apply_liger_kernel_to_{kind}" for kind in FACTORY),
    "ms-swift": """chunked_loss.LigerFusedLinearGRPOLoss chunked_loss.LigerFusedLinearJSDLoss
        transformers.model.loss_utils.LigerForCausalLMLoss""",
    "verl": """transformers.monkey_patch._apply_liger_kernel_to_instance
        ops.LigerFusedLinearScaledCrossEntropyTPFunction""",
    "NeMo": "transformers._apply_liger_kernel_to_instance",
    "open-instruct": "transformers.AutoLigerKernelForCausalLM",
    "VeOmni": """transformers.rms_norm.LigerRMSNorm transformers.swiglu.LigerSwiGLUMLP
        transformers.rope.liger_rotary_pos_emb ops.LigerRMSNormFunction ops.LigerSiLUMulFunction
        transformers.LigerFusedLinearCrossEntropyLoss""",
    "older TRL": " ".join(
        f"chunked_loss.LigerFusedLinear{kind}Loss" for kind in ("DPO", "GRPO", "JSD", "KTO")
    ),
}


@pytest.mark.parametrize("project", IMPORTS)
def test_names_are_there(project):
    assert all(name(path) is not None for path in IMPORTS[project].split())


def test_axolotl_patches_by_signature_before_the_model_is_made():
    wanted = SimpleNamespace(
        rope=True, cross_entropy=None, fused_linear_cross_entropy=True, rms_norm=True,
        layer_norm=True, glu=True,
    )  # fmt: skip
    function = name("transformers.monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN")["llama"]
    known = inspect.signature(function).parameters
    options = {flag: value for flag, value in vars(wanted).items() if flag in known}
    for flag in {"geglu", "swiglu"} & known.keys():
        options[flag] = wanted.glu
    assert list(options)[-1] == "swiglu"
    function(**options)
    model = LlamaForCausalLM(config())
    assert "forward" in vars(model.model.layers[0].mlp)
    assert "forward" in vars(model.lm_head)


def test_axolotl_puts_modules_into_modeling_files(monkeypatch):
    from transformers.models.llama import modeling_llama

    expected = llama()(input_ids=IDS, labels=IDS).loss
    norm = functools.partial(
        name("transformers.rms_norm.LigerRMSNorm"), offset=0.0, casting_mode="llama", in_place=False
    )
    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", norm)
    monkeypatch.setattr(modeling_llama, "LlamaMLP", name("transformers.swiglu.LigerSwiGLUMLP"))
    rotate = name("transformers.rope.liger_rotary_pos_emb")
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotate)
    plain = torch.nn.functional.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", name("transformers.functional.liger_cross_entropy"))
    model = llama()
    assert type(model.model.norm).__name__ == "LigerRMSNorm"
    assert_close(model(input_ids=IDS, labels=IDS).loss, expected)
    assert F.cross_entropy is not plain


def test_llama_factory_asks_for_logits():
    function = name("transformers.apply_liger_kernel_to_llama")
    options = {}
    if "fused_linear_cross_entropy" in inspect.signature(function).parameters:
        options = {"fused_linear_cross_entropy": False, "cross_entropy": True}
    function(**options)
    model = llama()
    expected = F.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    output = model.train()(input_ids=IDS, labels=IDS)
    assert isinstance(output.logits, torch.Tensor)
    assert_close(output.loss, expected)


def test_ms_swift_wraps_the_loss(monkeypatch):
    original = loss_utils.LigerForCausalLMLoss

    def contiguous(hidden_states, *args, **kwargs):
        kwargs.pop("cu_seq_lens_q", None)
        return original(hidden_states.contiguous(), *args, **kwargs)

    monkeypatch.setattr(loss_utils, "LigerForCausalLMLoss", contiguous)
    model = llama()
    hidden = model.model(IDS).last_hidden_state
    loss = loss_utils.LigerForCausalLMLoss(
        hidden_states=hidden, lm_head_weight=model.lm_head.weight, labels=IDS,
        hidden_size=32, cu_seq_lens_q=IDS, max_length_q=7, output_attentions=False,
    )  # fmt: skip
    assert_close(loss, model(input_ids=IDS, labels=IDS).loss)


def test_causal_lm_loss_scales_shifts_and_counts():
    model = llama()
    hidden, weight = model.model(IDS).last_hidden_state, model.lm_head.weight
    mean = loss_utils.LigerForCausalLMLoss(hidden, weight, IDS, 32)
    scaled = loss_utils.LigerForCausalLMLoss(hidden, weight, IDS, 32, torch.tensor(24))
    assert_close(scaled * 2, mean)
    shifted = F.pad(IDS, (0, 1), value=-100)[:, 1:]
    given = loss_utils.LigerForCausalLMLoss(hidden, weight, None, 32, shift_labels=shifted)
    assert_close(given, mean)
    output = loss_utils.LigerForCausalLMLoss(
        hidden, weight, IDS, 32, return_token_accuracy=True, return_predicted_tokens=True,
        final_logit_softcapping=30.0,
    )  # fmt: skip
    loss, z_loss, accuracy, predicted = loss_utils.unpack_cross_entropy_result(output)
    assert z_loss is None
    hits = (model(IDS).logits.argmax(-1)[:, :-1] == IDS[:, 1:]).float().mean()
    assert_close(accuracy, hits)
    assert predicted.shape == (14,)
    assert loss != mean
    assert loss_utils.unpack_cross_entropy_result((mean,)) == (mean, None, None, None)


def test_ms_swift_makes_its_losses():
    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, epsilon_low=0.2, epsilon_high=0.3, temperature=0.9,
        use_ref_model=False, loss_type="grpo", max_completion_length=8,
        importance_sampling_level="token", sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
    )  # fmt: skip
    model = llama()
    hidden = model.model(IDS).last_hidden_state[:, :-1]
    value, metrics = loss(
        _input=hidden, lin_weight=model.lm_head.weight, selected_token_ids=IDS[:, 1:],
        attention_mask=torch.ones(2, 6), advantages=torch.tensor([1.0, -2.0]), bias=None,
        old_per_token_logps=None, ref_per_token_logps=None,
    )  # fmt: skip
    assert_close(value, torch.tensor(0.5))
    assert metrics[-1] == 0
    rows = hidden.flatten(0, 1)
    jsd = LigerFusedLinearJSDLoss(
        beta=0.5, ignore_index=-100, temperature=1.0, compiled=False, weight_hard_loss=0.0,
        weight_soft_loss=1.0,
    )  # fmt: skip
    labels = IDS[:, 1:].flatten()
    same = jsd(rows, model.lm_head.weight, rows.detach(), model.lm_head.weight, labels)
    assert_close(same, torch.zeros(()), atol=1e-6, rtol=0)


def test_verl_and_automodel_patch_an_instance():
    for path in ("transformers.monkey_patch", "transformers"):
        model = llama()
        name(f"{path}._apply_liger_kernel_to_instance")(model=model)
        assert "LigerRMSNorm" in repr(model)


def test_open_instruct_and_instructlab_load_by_the_auto_class(tmp_path):
    llama().save_pretrained(tmp_path)
    auto = name("transformers.AutoLigerKernelForCausalLM")
    fused = auto.from_pretrained(tmp_path, fused_linear_cross_entropy=True, dtype="auto")
    logits = auto.from_pretrained(
        tmp_path, cross_entropy=True, fused_linear_cross_entropy=False, use_cache=False
    )
    assert "forward" in vars(fused.lm_head)
    assert "forward" not in vars(logits.lm_head)
    found = [m.train()(input_ids=IDS, labels=IDS).loss for m in (fused, logits)]
    assert_close(*found)
