"""Two ranks over gloo; run as a script by test_training."""

import sys
from pathlib import Path

import torch
from torch import distributed as dist, multiprocessing, nn

sys.path.insert(0, str(Path(__file__).parent))

import liger_hf
import zoo
from families import FAMILIES, assert_same_step, build, gradients, tokens
from liger_hf import mlp


def loss(model: nn.Module) -> torch.Tensor:
    batch = tokens(seed=dist.get_rank())
    return model(input_ids=batch, labels=batch, num_items_in_batch=7).loss


def make(family: str) -> nn.Module:
    return build(family) if family in FAMILIES else zoo.tiny("causal-lm", family)


def ddp(patched: bool, **options: bool) -> tuple:
    model = build("gemma2")
    if patched:
        liger_hf.apply(model)
    return gradients(nn.parallel.DistributedDataParallel(model, **options), loss)


def sharded(family: str, patch: str, separate_head: bool, inside: str = "") -> nn.Module:
    """Every layer in a group, `inside` it one in another, maybe the head in one, and the rest."""
    from torch.distributed.fsdp import fully_shard

    model = make(family)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    if patch == "before":
        liger_hf.apply(model)
    for layer in model.model.layers:
        if inside:
            fully_shard(layer.get_submodule(inside), mesh=mesh)
        fully_shard(layer, mesh=mesh)
    if separate_head:
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if patch == "after":
        report = liger_hf.apply(model)
        assert not report.refused, report
    return model


def grouped(family: str) -> None:
    """Tied weights as FSDP2 wants them, in one group: real logits, and every gradient."""
    from torch.distributed.fsdp import fully_shard

    def step(patch: str) -> tuple:
        model = build(family)
        if patch == "before":
            liger_hf.apply(model)
        fully_shard([model.model.embed_tokens, model.model.norm, model.lm_head])
        fully_shard(model)
        if patch == "after":
            (row,) = liger_hf.apply(model).refused
            assert row.reason == "FSDP gathers it together with other modules"
        value, grads = gradients(model, loss)
        return value, {name: grad.full_tensor() for name, grad in grads.items()}

    for patch in ("before", "after"):
        assert_same_step(step(patch), step(""))


def fsdp(family: str, patch: str, *groups: bool | str) -> tuple:
    model = sharded(family, patch, *groups)
    value, grads = gradients(model, loss)
    return value, {name: grad.full_tensor() for name, grad in grads.items()}


def flat(patched: bool, **options: bool) -> tuple:
    """The first FSDP, which lends modules views of a flat parameter for a forward."""
    from torch.distributed import fsdp
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    model = build("llama")
    if patched:
        liger_hf.apply(model, loss=False)
    layers = ModuleWrapPolicy({type(model.model.layers[0])})
    model = fsdp.FullyShardedDataParallel(
        model, auto_wrap_policy=layers, device_id=torch.device("cpu"), **options
    )
    value, grads = gradients(model, loss)
    return value, {name: grad.clone() for name, grad in grads.items()}


def one_rank(family: str, patched: bool) -> tuple:
    """Both ranks' batches in one process: the mean of two losses, and its gradients."""
    model = make(family)
    if patched:
        liger_hf.apply(model)

    def mean(model: nn.Module) -> torch.Tensor:
        batches = [tokens(seed=seed) for seed in range(2)]
        losses = [model(input_ids=b, labels=b, num_items_in_batch=7).loss for b in batches]
        return torch.stack(losses).mean()

    return gradients(model, mean)


def consolidated(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint that the ranks write together, whole on each rank."""
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True)
    return state_dict.get_model_state_dict(model, options=options)


def step_and_consolidate(family: str) -> None:
    """Patched and sharded, a step, and the whole checkpoint fits an unpatched model."""
    model, plain = sharded(family, "before", separate_head=True), build(family)
    for trained in (model, plain):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        step = gradients(model, loss) if trained is model else one_rank(family, patched=False)
        if trained is plain:
            for name, parameter in plain.named_parameters():
                parameter.grad = step[1][name]
        optimizer.step()
    state = consolidated(model)
    assert state.keys() == plain.state_dict().keys()
    loaded = build(family)
    loaded.load_state_dict(state)
    batch = tokens()
    torch.testing.assert_close(
        loaded(input_ids=batch).logits, plain(input_ids=batch).logits, rtol=0.0, atol=1e-5
    )


def down_projections() -> None:
    """Computed by the op where FSDP has gathered them for good, and called where it has not."""
    plain: list[bool] = []
    ask = mlp.is_plain_linear
    mlp.is_plain_linear = lambda *given: plain.append(ask(*given)) or plain[-1]
    for inside, fused in (("", True), ("mlp", True), ("mlp.down_proj", False)):
        for patch in ("before", "after"):
            expected = fsdp("llama", "", False, inside)
            assert_same_step(fsdp("llama", patch, False, inside), expected)
            assert plain[-1] == fused, inside
    for use_orig_params in (True, False):
        expected = flat(False, use_orig_params=use_orig_params)
        assert_same_step(flat(True, use_orig_params=use_orig_params), expected)
        assert not plain[-1]
    mlp.is_plain_linear = ask


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for options in ({}, {"static_graph": True}):
        assert_same_step(ddp(True, **options), ddp(False, **options))
    for family, separate_head in (("llama", True), ("qwen2", False), ("qwen3_next", False)):
        expected, alone = fsdp(family, "", separate_head), one_rank(family, patched=True)
        for patch in ("before", "after"):
            actual = fsdp(family, patch, separate_head)
            assert_same_step(actual, expected)
            # the loss of this rank's batch is not the mean; the gradients are
            assert_same_step((expected[0], actual[1]), (expected[0], alone[1]))
    down_projections()
    step_and_consolidate("llama")
    grouped("qwen2")
    dist.destroy_process_group()


if __name__ == "__main__":
    # forked, so that the imports are paid once
    multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
