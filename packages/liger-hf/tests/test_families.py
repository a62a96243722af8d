"""Every family: what is patched, training and checkpoints beside the unpatched model."""

import copy

import liger_hf
import pytest
import torch
from families import (
    FAMILIES,
    PARTIAL,
    assert_same_objects,
    assert_same_step,
    build,
    gradients,
    snapshot,
    tokens,
    train,
)
from transformers import AutoModelForCausalLM

ALL = [*FAMILIES, *PARTIAL]

# layer -> form, for one layer of each kind
LLAMA = {
    "model.layers.0.self_attn": "rope half",
    "model.layers.0.mlp": "glu silu, gate and up",
    "model.layers.1.input_layernorm": "rms_norm cast=before",
    "model.norm": "rms_norm cast=before",
    "lm_head": "head + causal-LM loss",
}
GEMMA = LLAMA | {
    "model.layers.0.mlp": "glu gelu_tanh, gate and up",
    "model.layers.1.input_layernorm": "rms_norm offset=1.0, cast=after",
    "model.norm": "rms_norm offset=1.0, cast=after",
}
FORMS = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"model.layers.0.self_attn.q_norm": "rms_norm cast=before"},
    "mistral": LLAMA,
    "gemma": GEMMA,
    "gemma2": GEMMA
    | {"model.layers.1.post_feedforward_layernorm": "rms_norm offset=1.0, cast=after"},
    "phi3": LLAMA | {"model.layers.0.mlp": "glu silu, gate|up in one"},
    "granite": LLAMA,
    "olmo2": {
        "model.layers.0.self_attn.k_norm": "rms_norm cast=after",
        "model.layers.1.self_attn": "rope half",
    },
    "cohere": {"model.layers.0.mlp": "glu silu, gate and up", "lm_head": "head + causal-LM loss"},
    "glm4": {
        "model.layers.0.mlp": "glu silu, gate|up in one",
        "model.norm": "rms_norm cast=before",
    },
}


@pytest.mark.parametrize("family", ALL)
def test_forms_are_found(family):
    report = liger_hf.report(build(family))
    found = {row.path: row.form for row in report.patched}
    assert FORMS[family].items() <= found.items()
    assert family in PARTIAL or not report.refused, report


@pytest.mark.parametrize("family", ALL)
def test_training_agrees(family):
    plain, patched = build(family), build(family)
    liger_hf.apply(patched)
    torch.testing.assert_close(train(patched), train(plain), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("family", ALL)
def test_gradients_agree(family):
    model, batch = build(family), tokens()
    expected = gradients(model, lambda m: m(input_ids=batch, labels=batch).loss)
    with liger_hf.applied(model):
        assert_same_step(
            gradients(model, lambda m: m(input_ids=batch, labels=batch).loss), expected
        )


@pytest.mark.parametrize("family", ALL)
def test_logits_agree_in_evaluation(family):
    model, batch = build(family).eval(), tokens()
    with torch.no_grad():
        expected = model(input_ids=batch, labels=batch)
        liger_hf.apply(model)
        actual = model(input_ids=batch, labels=batch)
    assert type(actual.logits) is torch.Tensor
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss)


@pytest.mark.parametrize("family", ALL)
def test_revert_restores_every_object(family):
    model = build(family)
    before = snapshot(model)
    liger_hf.apply(model)
    assert any("forward" in vars(module) for module in model.modules())
    liger_hf.revert(model)
    assert_same_objects(model, before)


@pytest.mark.parametrize("family", ALL)
def test_checkpoint_loads_unpatched(family, tmp_path):
    model = build(family)
    keys = list(model.state_dict())
    liger_hf.apply(model)
    train(model, steps=1)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    liger_hf.revert(model.eval())
    batch = tokens()
    assert torch.equal(loaded(input_ids=batch).logits, model(input_ids=batch).logits)
    for name, value in loaded.state_dict().items():
        assert value.dtype == model.state_dict()[name].dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_losses_stay_within_rounding_noise(family):
    """Against fp32, patched bf16 training strays no further than unpatched bf16 training does."""
    master = build(family)
    plain, patched = copy.deepcopy(master).bfloat16(), copy.deepcopy(master).bfloat16()
    exact = train(master, steps=10, lr=1e-3)
    liger_hf.apply(patched)
    gap = (train(patched, steps=10, lr=1e-3) - exact).abs().max()
    noise = (train(plain, steps=10, lr=1e-3) - exact).abs().max()
    assert gap <= 1.5 * noise + 2e-3 * exact.max()
