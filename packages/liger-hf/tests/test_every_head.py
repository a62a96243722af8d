"""The loss of every type of decoder, head and loss patched alone: equal, and without logits."""

import liger_hf
import pytest
import torch
import zoo
from families import assert_same_step, gradients
from liger_hf.deferred import DeferredLogits

# Not here: encoder-decoders and others that compute a loss of their own (they are left alone, see
# below), big_bird and reformer, whose attention is random, and types that cannot be built small or
# called on text alone.
TEXT = """
    afmoe apertus apertus1p5_text arcee aria_text axk1 axk2 bailing_hybrid bamba beam bert
    bert-generation biogpt bitnet bloom camembert codegen cohere cohere2 cohere2_moe ctrl
    cwm data2vec-text deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1
    dots3_note dots3_note_text electra emu3 ernie ernie4_5 ernie4_5_moe exaone exaone4
    exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint fuyu gemma gemma2 gemma3
    gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4
    glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
    gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa
    granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hy_v4 hyperclovax inkling2_loop_text inkling2_text inkling_text internlm3 iquestcoder
    jais2 jamba jetmoe kimi_linear kolibri1 laguna lara_mini lfm2 lfm2_moe lfm3 llama llama4
    llama4_text longcat_flash mamba mamba2 megatron-bert mellum mimo_v2_flash minicpm3
    minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mllama
    modernbert-decoder moshi moss_transcribe_diarize mpt nanochat nemotron nemotron_h olmo
    olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phi4_multimodal phimoe
    qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe
    qwen3_next recurrent_gemma rembert roberta roberta-prelayernorm roc_bert roformer rwkv
    sarvam_mla sarvam_moe seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm
    xlm-roberta xlm-roberta-xl xmod youtu zamba zamba2 zaya
"""
TEXT_OF_IMAGES = """
    apertus1p5 aria aya_vision cosmos3_edge cosmos3_omni deepseek_vl evolla fuyu gemma3
    gemma4 gemma4_unified glm46v glm4v glm4v_moe glm_ocr glmga got_ocr2 granite_docling
    hunyuan_vl hy_v4_vl hyperclovax_vision_v2 idefics2 idefics3 inkling2_loop internvl
    kimi_k25 kosmos-2.5 lfm2_vl lfm3_vl lighton_ocr llava llava_next llava_next_video
    llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral3
    mistral_large4 mllama muse_glimmer ovis2 paddleocr_vl paligemma pp_chart2table
    qianfan_ocr qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe
    qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe shieldgemma2 smolvlm video_llama_3
    video_llava vipllava
"""


def build(model_type: str, kind: str = "causal-lm") -> torch.nn.Module:
    """Without dropout, and with no weights of zero or one."""
    model = zoo.tiny(kind, model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def inputs_of() -> dict[str, torch.Tensor]:
    """Text alone; some labels are ignored."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, zoo.TOKENS, (2, 10), generator=generator)
    return {"input_ids": ids, "labels": ids.where(ids > 12, -100)}


def check(kind: str, model_type: str) -> None:
    model, inputs, seen = build(model_type, kind), inputs_of(), []

    def loss(model: torch.nn.Module) -> torch.Tensor:
        # experts may draw noise
        torch.manual_seed(1)
        outputs = model(**inputs)
        seen.append(outputs.logits)
        return outputs.loss

    expected = gradients(model, loss)
    liger_hf.apply(model, norms=False, mlp=False, rope=False)
    actual = gradients(model, loss)
    assert isinstance(seen[1], DeferredLogits)
    assert seen[1].tensor is None
    # gradients as in assert_same_step, but small parts of a network are measured by its whole
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=0.0)
    largest = max(grad.abs().max().item() for grad in expected[1].values())
    torch.testing.assert_close(actual[1], expected[1], rtol=0.0, atol=1e-5 * largest)


@pytest.mark.parametrize("model_type", [n for n in TEXT.split() if n in zoo.MAPPINGS["causal-lm"]])
def test_text(model_type):
    check("causal-lm", model_type)


@pytest.mark.parametrize(
    "model_type", [n for n in TEXT_OF_IMAGES.split() if n in zoo.MAPPINGS["image-text-to-text"]]
)
def test_text_of_images(model_type):
    check("image-text-to-text", model_type)


@pytest.mark.parametrize("model_type", ["bart", "xlnet", "whisper"])
def test_own_losses_are_left_alone(model_type):
    report = liger_hf.report(build(model_type), norms=False, mlp=False, rope=False, mask=False)
    assert not report.patched
    assert report.refused[0].reason.endswith("forward does not call self.loss_function")


def test_router_loss_is_added():
    plain, patched = build("mixtral"), build("mixtral")
    liger_hf.apply(patched, norms=False, mlp=False, rope=False)
    outputs = patched(**inputs_of(), output_router_logits=True)
    assert outputs.aux_loss > 0
    assert outputs.logits.tensor is None

    def loss(model: torch.nn.Module) -> torch.Tensor:
        return model(**inputs_of(), output_router_logits=True).loss

    assert_same_step(gradients(patched, loss), gradients(plain, loss))


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_heads_of_classification_are_left_alone(task):
    import transformers

    config = build("llama").config
    model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    score = model.score
    report = liger_hf.apply(model)
    assert [row.reason for row in report.refused] == [
        "holds no transformers model with an output head"
    ]
    assert "forward" not in vars(score)
    assert model(input_ids=inputs_of()["input_ids"][:1]).logits.shape[-1] == 2
