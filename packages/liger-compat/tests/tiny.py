"""A tiny Llama, words for it, and what a run of a trainer logs."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "hill", "and", "slept")


def config(**options):
    return LlamaConfig(
        **{
            "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
        } | options
    )  # fmt: skip


def llama(seed=0, **options):
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(**options))


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def sentences(count, length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(0, len(WORDS), (count, length), generator=generator)
    return [" ".join(WORDS[i] for i in row) for row in picked]


def arguments(folder, **options):
    """Of any trainer: two steps on a CPU, each logged."""
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2,
        "learning_rate": 0.05, "lr_scheduler_type": "constant", "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "seed": 0, "dataloader_pin_memory": False,
    } | options  # fmt: skip


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
