"""Train a small Llama on real text, plain and patched by liger_hf, and compare.

    python train_llama.py
    python train_llama.py --text book.txt --steps 500

The training is plain PyTorch and transformers: `train` below is all of it, and its one line of
Liger is `liger_hf.apply(model)`. Each of the two runs starts from the same seed, in a process of
its own, so that its peak memory is its own.
"""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from comparison import Result, memory, plot, table
from options import check_writable, parser, read_text
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Settings:
    """One training run; both runs get the same."""

    device: torch.device
    dtype: str
    hidden_size: int
    layers: int
    vocab_size: int
    batch_size: int
    seq_len: int
    steps: int
    lr: float
    seed: int


def defaults(device: torch.device) -> dict[str, Any]:
    """On a CPU a toy in fp32, which trains in a minute or two; on a GPU a larger model in bf16."""
    if device.type == "cpu":
        return {
            "dtype": "float32", "hidden_size": 128, "layers": 2, "vocab_size": 8192,
            "batch_size": 16, "seq_len": 256, "steps": 120, "lr": 3e-3,
        }  # fmt: skip
    properties = torch.get_device_module(device).get_device_properties(device)
    gigabytes = properties.total_memory // 10**9
    return {
        "dtype": "bfloat16", "hidden_size": 768, "layers": 6, "vocab_size": 32768,
        "batch_size": min(max(gigabytes, 4), 32), "seq_len": 1024, "steps": 200, "lr": 1e-3,
    }  # fmt: skip


def tokenize(text: str, vocab_size: int) -> tuple[np.ndarray, int]:
    """The text in a byte-level BPE of at most `vocab_size` tokens trained on it, and its real size.

    Words that occur once become tokens too: so half a megabyte of text fills a vocabulary of 8192.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return np.array(tokenizer.encode(text).ids), tokenizer.get_vocab_size()


def train(settings: Settings, tokens: np.ndarray, patched: bool) -> Result:
    """One run, from the seed to the losses."""
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # would write to every new tensor, which costs time
    torch.utils.deterministic.fill_uninitialized_memory = False
    device = settings.device

    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden_size // 64,
        max_position_embeddings=settings.seq_len,
    )
    model = LlamaForCausalLM(config).to(device, getattr(torch, settings.dtype)).train()
    if patched:
        import liger_hf

        print(liger_hf.apply(model), file=sys.stderr)

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=settings.steps + 1, pct_start=0.1
    )
    text = torch.from_numpy(tokens)
    generator = torch.Generator().manual_seed(settings.seed)
    before, _ = memory(device)
    losses, times = [], [time.perf_counter()]
    bar = tqdm(range(settings.steps), desc="patched" if patched else "plain", unit="step")
    for _ in bar:
        starts = torch.randint(
            len(text) - settings.seq_len + 1, (settings.batch_size, 1), generator=generator
        )
        batch = text[starts + torch.arange(settings.seq_len)].to(device)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        losses.append(loss.item())
        times.append(time.perf_counter())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)

    _, peak = memory(device)
    # the median step: neither the compilation of kernels nor a busy moment of the machine counts
    seconds = float(np.median(np.diff(times)))
    return Result(losses, settings.batch_size * settings.seq_len / seconds, before, peak)


def run(settings: Settings, tokens: np.ndarray, patched: bool) -> Result:
    """`train` in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, settings, tokens, patched).result()


def main() -> int:
    command = parser()
    options = vars(command.parse_args())
    plot_file = options.pop("out") / "losses.png"
    try:
        text = read_text(options.pop("text"))
        check_writable(plot_file)
    except ValueError as error:
        command.error(str(error))
    chosen = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**{**defaults(options["device"]), **chosen})
    tokens, vocab_size = tokenize(text, settings.vocab_size)
    settings = replace(settings, vocab_size=vocab_size)
    if len(tokens) < settings.batch_size * settings.seq_len:
        command.error(
            f"the text has {len(tokens):,} tokens, too few for a batch of "
            f"{settings.batch_size:,} x {settings.seq_len:,}"
        )

    frequency = np.bincount(tokens)[np.unique(tokens)] / len(tokens)
    entropy = -float(np.sum(frequency * np.log(frequency)))
    print(
        f"{len(text):,} characters, {len(tokens):,} tokens, vocabulary of {vocab_size:,}, "
        f"unigram entropy {entropy:.2f}"
    )
    print(
        f"Llama, {settings.layers} layers of {settings.hidden_size}, {settings.dtype} on "
        f"{settings.device}; "
        f"{settings.steps:,} steps of {settings.batch_size} x {settings.seq_len} tokens",
        flush=True,
    )
    # asked for by deterministic matrix products on CUDA
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        plain, patched = run(settings, tokens, patched=False), run(settings, tokens, patched=True)
    except (torch.OutOfMemoryError, BrokenProcessPool):
        print(
            f"{command.prog}: out of memory; try a smaller --batch-size or --seq-len",
            file=sys.stderr,
        )
        return 1
    print(table(plain, patched, settings.device))
    plot(plain, patched, entropy, plot_file)
    print(f"loss curves: {plot_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
