"""Two ranks over gloo; run as a script by test_training."""

import sys
from pathlib import Path

import torch
from torch import distributed as dist, multiprocessing, nn

sys.path.insert(0, str(Path(__file__).parent))

import liger_hf
import zoo
from families import FAMILIES, assert_same_step, build, gradients, tokens


def loss(model: nn.Module) -> torch.Tensor:
    batch = tokens(seed=dist.get_rank())
    return model(input_ids=batch, labels=batch, num_items_in_batch=7).loss


def ddp(patched: bool, **options: bool) -> tuple:
    model = build("gemma2")
    if patched:
        liger_hf.apply(model)
    return gradients(nn.parallel.DistributedDataParallel(model, **options), loss)


def fsdp(family: str, patch: str, separate_head: bool) -> tuple:
    from torch.distributed.fsdp import fully_shard

    model = build(family) if family in FAMILIES else zoo.tiny("causal-lm", family)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    if patch == "before":
        liger_hf.apply(model)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if separate_head:
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if patch == "after":
        report = liger_hf.apply(model)
        assert not report.refused, report
    value, grads = gradients(model, loss)
    return value, {name: grad.full_tensor() for name, grad in grads.items()}


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for options in ({}, {"static_graph": True}):
        assert_same_step(ddp(True, **options), ddp(False, **options))
    for family, separate_head in (("llama", True), ("qwen2", False), ("qwen3_next", False)):
        expected = fsdp(family, "", separate_head)
        for patch in ("before", "after"):
            assert_same_step(fsdp(family, patch, separate_head), expected)
    dist.destroy_process_group()


if __name__ == "__main__":
    # forked, so that the imports are paid once
    multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
