"""ZeRO of DeepSpeed on two ranks over gloo; run as a script by test_two_processes."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist, multiprocessing, nn

sys.path.insert(0, str(Path(__file__).parent))

import liger_hf
from families import build, tokens
from liger_hf.deferred import DeferredLogits
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "zero_allow_untested_optimizer": True,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "torch_adam": True}},
}
PARTED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
# stage and precision, and when the model is patched
RUNS = (
    (PARTED, ("before", "after", "loaded in parts")),
    ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, ("before", "after")),
)
FAMILIES = ("llama", "qwen2")
PLAIN = {family: liger_hf.report(build(family)) for family in FAMILIES}


def load_in_parts(checkpoint: Path, config: dict) -> nn.Module:
    """As the Trainer does for ZeRO-3: no rank holds a whole parameter afterwards."""
    # transformers looks for it while it lives
    alive = HfDeepSpeedConfig(config)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).train()
    assert alive.is_zero3()
    assert all(p.numel() == 0 for p in model.parameters())
    return model


def check_report(report: liger_hf.Report, family: str) -> None:
    """Every layer is patched that is patched in a model on one device."""
    assert [row.op for row in report.rows] == [row.op for row in PLAIN[family].rows]
    assert not report.refused


def train(checkpoint: Path, config: dict, patch: str) -> list[float]:
    """Losses of three steps; those after the first show the gradients before them."""
    import deepspeed

    in_parts = patch == "loaded in parts"
    model = load_in_parts(checkpoint, config) if in_parts else build(checkpoint.name)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if patch not in ("", "after"):
        check_report(liger_hf.apply(model), checkpoint.name)
    engine, *_ = deepspeed.initialize(
        model=model, config=config, model_parameters=model.parameters()
    )
    if patch == "after":
        check_report(liger_hf.apply(model), checkpoint.name)
    losses = []
    for step in range(3):
        batch = tokens(seed=2 * step + dist.get_rank())
        outputs = engine(input_ids=batch, labels=batch)
        assert isinstance(outputs.logits, DeferredLogits) == bool(patch)
        engine.backward(outputs.loss)
        engine.step()
        losses.append(outputs.loss.item())
    return losses


def work(rank: int, port: str, folder: Path) -> None:
    import deepspeed.comm.torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # gloo alone: what it adds for a CPU needs a compiler
    deepspeed.comm.torch.build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend="gloo")
    for checkpoint in sorted(folder.iterdir()):
        for settings, patches in RUNS:
            config = CONFIG | settings
            expected = train(checkpoint, config, "")
            for patch in patches:
                found = train(checkpoint, config, patch)
                gaps = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
                bound = torch.finfo(torch.bfloat16).eps if "bf16" in config else 1e-5
                assert max(gaps) < bound, (checkpoint.name, config, patch, gaps)
    dist.destroy_process_group()


def main(port: str, folder: str) -> None:
    for family in FAMILIES:
        build(family).save_pretrained(Path(folder, family))
    multiprocessing.start_processes(work, (port, Path(folder)), nprocs=2, start_method="spawn")


if __name__ == "__main__":
    main(*sys.argv[1:])
