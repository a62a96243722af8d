"""`Trainer` of transformers with `use_liger_kernel=True`."""

import importlib
import logging

import pytest
import torch
from liger_kernel.transformers import liger_rotary_pos_emb
from tiny import arguments, llama, losses
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments
from transformers.models.llama import modeling_llama
from transformers.utils import is_liger_kernel_available

ROWS = torch.randint(3, 32, (8, 9), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in ROWS]
# every key of `liger_kernel_config` that transformers documents, and one that Llama does not have
CONFIGS = [
    None, {"rope": False}, {"swiglu": False}, {"rms_norm": False}, {"geglu": True},
    {"fused_linear_cross_entropy": False},
    {"fused_linear_cross_entropy": False, "cross_entropy": True},
]  # fmt: skip


def trained(folder, model=None, **options):
    made = TrainingArguments(**arguments(folder, **options))
    trainer = Trainer(llama() if model is None else model, made, train_dataset=DATA,
                      eval_dataset=DATA)  # fmt: skip
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Losses of a run and of its evaluation without Liger kernels."""
    folder = tmp_path_factory.mktemp("plain")
    trainer = trained(folder, gradient_accumulation_steps=2)
    return losses(trainer), trainer.evaluate()["eval_loss"]


def test_transformers_finds_the_package():
    is_liger_kernel_available.cache_clear()
    assert is_liger_kernel_available()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_losses_are_those_of_a_run_without(tmp_path, plain, config):
    trainer = trained(
        tmp_path, use_liger_kernel=True, liger_kernel_config=config, gradient_accumulation_steps=2
    )
    assert_close(losses(trainer), plain[0], rtol=1e-5, atol=1e-5)
    assert_close(trainer.evaluate()["eval_loss"], plain[1], rtol=1e-5, atol=1e-5)
    off = config or {}
    assert ("LigerRMSNorm" in repr(trainer.model.model.norm)) == off.get("rms_norm", True)
    swapped = modeling_llama.apply_rotary_pos_emb is liger_rotary_pos_emb
    assert swapped == off.get("rope", True)


def test_model_is_patched_when_training_begins(tmp_path):
    """transformers patches in `train`, not in the constructor."""
    model = llama()
    made = TrainingArguments(**arguments(tmp_path, use_liger_kernel=True))
    trainer = Trainer(model, made, train_dataset=DATA)
    assert "LigerRMSNorm" not in repr(model)
    trainer.train()
    assert "LigerRMSNorm" in repr(model)


def test_evaluation_with_metrics_gets_logits(tmp_path):
    shapes = []

    def metrics(prediction):
        shapes.append(prediction.predictions.shape)
        return {"mean": float(prediction.predictions.mean())}

    found = []
    for use in (False, True):
        made = TrainingArguments(**arguments(tmp_path, use_liger_kernel=use))
        trainer = Trainer(llama(), made, train_dataset=DATA, eval_dataset=DATA,
                          compute_metrics=metrics)  # fmt: skip
        trainer.train()
        found.append(trainer.evaluate()["eval_mean"])
    assert shapes == [(8, 9, 32)] * 2
    assert_close(*found, rtol=1e-4, atol=1e-5)


def test_adapters(tmp_path):
    peft = importlib.import_module("peft")
    runs = []
    for use in (False, True):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(
            llama(), peft.LoraConfig(target_modules=["q_proj", "down_proj"], lora_dropout=0.0)
        )
        runs.append(losses(trained(tmp_path, adapted, use_liger_kernel=use)))
        assert ("LigerRMSNorm" in repr(adapted)) == use
    assert_close(*runs, rtol=1e-5, atol=1e-5)


def test_other_modules_are_left_alone(tmp_path, caplog):
    """Trainer itself warns of what is no PreTrainedModel."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = llama()

        def forward(self, input_ids, labels):
            return {"loss": self.inner(input_ids=input_ids, labels=labels).loss}

    with caplog.at_level(logging.WARNING):
        trainer = trained(tmp_path, Wrapped(), use_liger_kernel=True)
    assert "Liger" not in repr(trainer.model)
