"""One training step of a Llama-3-8B-shaped model cut to 4 layers: plain, compiled and patched.

bf16 weights, gradients and AdamW states, batch 4 x 2048 of random tokens, the same for each
variant; every variant runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from liger_core.bench.clocks import device_times, peak_mib, summary
from liger_core.bench.machine import environment, slug

VARIANTS = ("eager", "compile", "liger-kernel", "ours", "ours+compile")
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "use_cache": False,
}
SMALL = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
FIRST_STEPS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--variant", help="run this one here and print its result as JSON")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--commit", help="recorded commit (default: git rev-parse HEAD)")
    parser.add_argument("--small", action="store_true", help="a tiny model, for a CPU")
    parser.add_argument("--limit", type=int, default=240, help="seconds for one variant")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(run_variant(arguments.variant, arguments.small)))
        return 0
    variants = arguments.variants.split(",")
    if unknown := set(variants) - set(VARIANTS):
        parser.error(
            f"unknown variants {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}"
        )
    device = _device()
    document = {
        "family": "step",
        "environment": environment(device, ["liger-kernel"], arguments.commit),
        "ceilings": {},
        "rows": [],
        "step": [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{slug(device)}-step.json"
    for variant in variants:
        result = _in_process(variant, arguments.small, arguments.limit)
        document["step"].append({"name": variant, **result})
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(_line(variant, result), flush=True)
    print(path)
    return 0


def run_variant(variant: str, small: bool) -> dict:
    """Train a few steps on fixed random tokens, then time the following ones."""
    device = _device()
    torch.manual_seed(0)
    model = _model(SMALL if small else LLAMA, device)
    report = None
    if variant == "liger-kernel":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model)
    elif variant.startswith("ours"):
        import liger_hf

        report = str(liger_hf.apply(model))
    callable_model = torch.compile(model) if variant.endswith("compile") else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch, length = (2, 32) if small else (4, 2048)
    tokens = torch.randint(model.config.vocab_size, (batch, length), device=device)
    losses: list[torch.Tensor] = []

    def step() -> None:
        loss = callable_model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    for _ in range(FIRST_STEPS):
        step()
    # absolute, and before the clock allocates its buffer
    resident = torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    above = peak_mib(step, device)
    times = summary(device_times(step, device))
    return {
        "ms": times,
        "tokens_s": batch * length / times["median"] * 1e3,
        "peak_gib": None if above is None else (resident + above) / 1024,
        "losses": [round(float(loss), 5) for loss in losses[:FIRST_STEPS]],
        "report": report,
    }


def _model(config: dict, device: torch.device) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="sdpa"))
    finally:
        torch.set_default_dtype(before)
    return model.train()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _in_process(variant: str, small: bool, limit: int) -> dict:
    command = [sys.executable, __file__, "--variant", variant, *(["--small"] if small else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {limit} s"}
    if done.returncode:
        lines = done.stderr.strip().split("\n")
        print("\n".join(lines[-12:]), file=sys.stderr)
        return {"failed": lines[-1][:300]}
    return json.loads(done.stdout.strip().split("\n")[-1])


def _line(variant: str, result: dict) -> str:
    if "failed" in result:
        return f"{variant:<14} {result['failed']}"
    peak = "-" if result["peak_gib"] is None else f"{result['peak_gib']:.2f} GiB"
    losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
    speed = f"{result['ms']['median']:8.1f} ms {result['tokens_s']:10,.0f} tokens/s"
    return f"{variant:<14} {speed} {peak:>10}  losses {losses}"


if __name__ == "__main__":
    sys.exit(main())
