"""The trainers of the installed TRL with `use_liger_kernel=True`: the losses of a run without."""

import pytest

pytest.importorskip("trl")
from datasets import Dataset
from tiny import arguments, llama, losses, sentences, tokenizer
from torch.testing import assert_close
from transformers import LlamaForCausalLM
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.import_utils import is_liger_kernel_available

PROMPTS, CHOSEN, REJECTED = (sentences(8, seed=seed) for seed in range(3))


def length(completions, **_):
    return [float(len(text.split())) + 0.1 * text.count("cat") for text in completions]


TRAINERS = {
    "sft": (SFTTrainer, SFTConfig, {"text": CHOSEN}, {}, {}),
    "dpo": (DPOTrainer, DPOConfig,
            {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}, {}, {}),
    "kto": (KTOTrainer, KTOConfig,
            {"prompt": PROMPTS, "completion": CHOSEN, "label": [True, False] * 4}, {}, {}),
    "grpo": (GRPOTrainer, GRPOConfig, {"prompt": PROMPTS},
             {"num_generations": 2, "max_completion_length": 6, "beta": 0.1, "use_vllm": False},
             {"reward_funcs": length}),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model in a folder, from which trainers load their reference."""
    folder = tmp_path_factory.mktemp("model")
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def run(saved, folder, name, **options):
    trainer_class, config_class, data, settings, more = TRAINERS[name]
    # TRL trains in bf16 unless told otherwise
    made = config_class(**arguments(folder, bf16=False, **settings, **options))
    trainer = trainer_class(
        model=LlamaForCausalLM.from_pretrained(saved), args=made,
        train_dataset=Dataset.from_dict(data), processing_class=tokenizer(), **more,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", TRAINERS)
def test_losses_are_those_of_a_run_without(saved, tmp_path, name):
    plain = run(saved, tmp_path, name)
    patched = run(saved, tmp_path, name, use_liger_kernel=True, liger_kernel_config={"geglu": True})
    assert "LigerRMSNorm" in repr(patched.model)
    assert "LigerRMSNorm" not in repr(plain.model)
    assert any(losses(plain))
    assert_close(losses(patched), losses(plain), rtol=1e-4, atol=1e-5)


def test_trl_finds_the_package():
    assert is_liger_kernel_available()
