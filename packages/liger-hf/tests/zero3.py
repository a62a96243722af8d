"""ZeRO-3 of DeepSpeed on two ranks over gloo; run as a script by test_two_processes."""

import os
import sys
from pathlib import Path

from torch import distributed as dist, multiprocessing

sys.path.insert(0, str(Path(__file__).parent))

import liger_hf
from families import build, tokens
from liger_hf.deferred import DeferredLogits

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "torch_adam": True}},
}


def train(family: str, patch: str) -> list[float]:
    """Losses of three steps; those after the first show the gradients before them."""
    import deepspeed

    model = build(family)
    if patch == "before":
        liger_hf.apply(model)
    engine, *_ = deepspeed.initialize(
        model=model, config=CONFIG, model_parameters=model.parameters()
    )
    if patch == "after":
        assert not liger_hf.apply(model).refused
    losses = []
    for step in range(3):
        batch = tokens(seed=2 * step + dist.get_rank())
        outputs = engine(input_ids=batch, labels=batch)
        assert isinstance(outputs.logits, DeferredLogits) == bool(patch)
        engine.backward(outputs.loss)
        engine.step()
        losses.append(outputs.loss.item())
    return losses


def work(rank: int, port: str) -> None:
    import deepspeed

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    deepspeed.init_distributed(dist_backend="gloo")
    for family in ("llama", "qwen2"):
        expected = train(family, "")
        for patch in ("before", "after"):
            gaps = [abs(a / b - 1) for a, b in zip(train(family, patch), expected, strict=True)]
            assert max(gaps) < 1e-5, (family, patch, gaps)
    dist.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="spawn")
