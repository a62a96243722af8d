"""Checkpointing, torch.compile, Trainer, adapters, wrappers of others."""

import liger_hf
import pytest
import torch
from families import assert_same_objects, assert_same_step, build, gradients, snapshot, tokens
from torch.utils.data import Dataset


def loss(model, **keywords):
    return model(input_ids=tokens(), labels=tokens(), **keywords).loss


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradient_checkpointing(family, use_reentrant):
    model = build(family)
    expected = gradients(model, loss)
    liger_hf.apply(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same_step(gradients(model, loss), expected)


def compiled(model, **keywords):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager", **keywords)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_model(family):
    model = build(family)
    expected, z = gradients(model, loss), model(input_ids=tokens()).logits
    liger_hf.apply(model)
    run = compiled(model)
    assert_same_step(gradients(model, lambda m: loss(run)), expected)
    torch.testing.assert_close(
        run(input_ids=tokens(), labels=tokens()).logits + 0, z, rtol=0.0, atol=1e-5
    )


def test_compiled_model_without_labels():
    model = build("llama")
    expected = gradients(model, lambda m: m(input_ids=tokens()).logits.square().mean())
    liger_hf.apply(model)
    run = compiled(model)
    assert_same_step(
        gradients(model, lambda m: run(input_ids=tokens()).logits.square().mean()), expected
    )


def test_compiled_code_follows_apply_and_revert():
    """Code compiled before `apply` is not run after it, and the other way around."""
    from torch._dynamo.testing import CompileCounter

    model, counter = build("llama").eval(), CompileCounter()
    torch._dynamo.reset()
    run = torch.compile(model.model.layers[0].mlp, backend=counter)
    x = torch.randn(2, 3, 32)
    run(x)
    with liger_hf.applied(model, norms=False, rope=False, loss=False):
        run(x)
        assert counter.frame_count == 2
    run(x)
    run(x)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("parts", [("",), ("mlp", "input_layernorm")])
def test_layers_share_compiled_code(parts):
    """Whole decoder layers, and parts of them."""
    from torch._dynamo.testing import CompileCounter

    # the cache of a layer has its state, for which each would be compiled
    model, counter = build("llama", num_hidden_layers=4, use_cache=False), CompileCounter()
    liger_hf.apply(model)
    torch._dynamo.reset()
    torch._dynamo.config.error_on_recompile, before = True, torch._dynamo.config.error_on_recompile
    try:
        for layer in model.model.layers:
            for part in parts:
                layer.get_submodule(part).compile(backend=counter, fullgraph=True)
        loss(model)
    finally:
        torch._dynamo.config.error_on_recompile = before
    assert counter.frame_count == len(parts)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    model = build("llama")
    expected = model(tokens()).logits
    liger_hf.apply(model)
    exported = torch.export.export(model, (tokens(),), {"use_cache": False}, strict=strict)
    actual = exported.module()(tokens(), use_cache=False).logits
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-5)


def test_generate():
    model = build("qwen3").eval()
    keywords = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(tokens(length=4), **keywords)
    liger_hf.apply(model)
    assert torch.equal(model.generate(tokens(length=4), **keywords), expected)
    assert model.train().generate(tokens(length=4), **keywords).shape == expected.shape


class Texts(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        ids = tokens(1, 12, seed=index)[0]
        return {"input_ids": ids, "labels": ids.where(ids > 3 * index, -100)}


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer(bf16, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    def run(patched):
        model = build("gemma2")
        before = snapshot(model)
        if patched:
            liger_hf.apply(model)
        arguments = TrainingArguments(
            tmp_path, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            logging_steps=1, eval_strategy="steps", eval_steps=2, learning_rate=1e-3, bf16=bf16,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Texts(), eval_dataset=Texts())
        trainer.train()
        predictions = trainer.predict(Texts()).predictions
        if patched:
            liger_hf.revert(model)
        if patched and not bf16:
            after = {k for k in vars(model) if k not in before[""]}
            assert not any("liger" in k or k == "forward" for k in after)
        logs = [
            {k: v for k, v in row.items() if k in ("loss", "eval_loss", "grad_norm")}
            for row in trainer.state.log_history
        ]
        return [row for row in logs if row], torch.as_tensor(predictions)

    (expected, logits), (actual, same) = run(False), run(True)
    tolerance = 2e-2 if bf16 else 1e-5
    assert len(actual) == len(expected) == 6
    for a, b in zip(actual, expected, strict=True):
        assert a == pytest.approx(b, rel=tolerance)
    torch.testing.assert_close(same, logits, rtol=0.0, atol=0.2 if bf16 else 1e-4)


def test_forward_wrapped_by_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    expected = gradients(accelerator.prepare(build("llama")), loss)
    plain = gradients(build("llama"), loss)

    model = build("llama")
    liger_hf.apply(model)
    assert_same_step(gradients(accelerator.prepare(model), loss), expected, rtol=2e-2)
    assert type(model(input_ids=tokens()).logits) is torch.Tensor
    assert_same_step(
        gradients(accelerator.unwrap_model(model, keep_fp32_wrapper=False), loss), plain
    )
    liger_hf.revert(model)
    assert_same_step(gradients(model, loss), plain, rtol=0.0)

    model = accelerator.prepare(build("llama"))
    before = snapshot(model)
    liger_hf.apply(model)
    assert_same_step(gradients(model, loss), expected, rtol=2e-2)
    liger_hf.revert(model)
    assert_same_objects(model, before)


def test_wrapper_around_the_head_gets_logits():
    """What an adapter library does, without one installed."""

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.extra = base, torch.nn.Linear(base.in_features, base.out_features)
            torch.nn.init.constant_(self.extra.weight, 0.01)
            torch.nn.init.zeros_(self.extra.bias)

        def forward(self, x):
            return self.base(x) + self.extra(x)

    plain, patched = build("llama"), build("llama")
    liger_hf.apply(patched)
    for model in (plain, patched):
        model.lm_head = Adapter(model.lm_head)
    assert_same_step(gradients(patched, loss), gradients(plain, loss))
    assert "not a plain nn.Linear" in liger_hf.report(patched).refused[0].reason
