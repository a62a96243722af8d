"""DDP, FSDP2 and FSDP1 on two ranks; a script of test_two_processes.

Arguments: the file over which the ranks meet, and the backend, gloo or nccl.
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist, multiprocessing, nn

sys.path.insert(0, str(Path(__file__).parent))

import liger_hf
import zoo
from families import FAMILIES, assert_same_step, build, gradients, tokens
from liger_hf import mlp
from liger_hf.find import FLATTENED

RANKS = 2


def device() -> torch.device:
    return torch.device("cpu" if dist.get_backend() == "gloo" else f"cuda:{dist.get_rank()}")


def make(family: str, patched: bool = False) -> nn.Module:
    model = build(family) if family in FAMILIES else zoo.tiny("causal-lm", family)
    model.to(device())
    if patched:
        liger_hf.apply(model)
    return model


def outputs(model: nn.Module, seed: int | None = None) -> dict:
    """Of this rank's batch, or of another one's."""
    batch = tokens(seed=dist.get_rank() if seed is None else seed).to(device())
    return model(input_ids=batch, labels=batch, num_items_in_batch=7)


def loss(model: nn.Module) -> torch.Tensor:
    return outputs(model).loss


def one_rank(family: str, patched: bool = False) -> tuple:
    """Both ranks' batches in one process: the mean of two losses, and its gradients."""

    def mean(model: nn.Module) -> torch.Tensor:
        return torch.stack([outputs(model, seed).loss for seed in range(RANKS)]).mean()

    return gradients(make(family, patched), mean)


def tolerance() -> float:
    """On a GPU the kernels of a patched model sum in another order than those of torch."""
    return 1e-5 if device().type == "cpu" else 1e-4


def assert_same(actual: tuple, expected: tuple) -> None:
    assert_same_step(actual, expected, rtol=tolerance())


def check_ddp() -> None:
    def step(patched: bool, options: dict[str, bool]) -> tuple:
        model = make("gemma2", patched)
        if options.get("find_unused_parameters"):
            # for whose gradient DDP would wait
            model.unused = nn.Parameter(torch.zeros(3, device=device()))
        model = nn.parallel.DistributedDataParallel(model, **options)
        # a static graph is recorded in the first step and relied on in the second
        gradients(model, loss)
        return gradients(model, loss)

    for options in ({}, {"static_graph": True}, {"find_unused_parameters": True}):
        assert_same(step(True, options), step(False, options))


def sharded(family: str, patch: str, separate_head: bool, inside: str = "") -> nn.Module:
    """Every layer in a group, `inside` it one in another, maybe the head in one, and the rest."""
    from torch.distributed.fsdp import fully_shard

    model = make(family, patched=patch == "before")
    mesh = dist.device_mesh.init_device_mesh(device().type, (RANKS,))
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


def whole(step: tuple) -> tuple:
    value, grads = step
    return value, {name: grad.full_tensor() for name, grad in grads.items()}


def check_fsdp2() -> None:
    for family, separate_head in (("llama", True), ("qwen2", False), ("qwen3_next", False)):
        plain = whole(gradients(sharded(family, "", separate_head), loss))
        alone = one_rank(family, patched=True)
        for patch in ("before", "after"):
            actual = whole(gradients(sharded(family, patch, separate_head), loss))
            assert_same(actual, plain)
            # the loss of this rank's batch is not the mean; the gradients are
            assert_same((plain[0], actual[1]), (plain[0], alone[1]))


def check_down_projections() -> None:
    """Computed by the op where FSDP has gathered them for good, and called where it has not."""
    plain: list[bool] = []
    ask = mlp.is_plain_linear
    mlp.is_plain_linear = lambda *given: plain.append(ask(*given)) or plain[-1]
    for inside, fused in (("", True), ("mlp", True), ("mlp.down_proj", False)):
        expected = whole(gradients(sharded("llama", "", False, inside), loss))
        for patch in ("before", "after"):
            actual = whole(gradients(sharded("llama", patch, False, inside), loss))
            assert_same(actual, expected)
            assert plain[-1] == fused, inside
    # its own check compares the gradients
    loss(flattened(make("llama", patched=True)))
    assert not plain[-1]
    mlp.is_plain_linear = ask


def check_fsdp2_group_of_tied_weights() -> None:
    """Tied weights as FSDP2 wants them, in one group: real logits, and every gradient."""
    from torch.distributed.fsdp import fully_shard

    def step(patch: str) -> tuple:
        model = make("qwen2", patched=patch == "before")
        fully_shard([model.model.embed_tokens, model.model.norm, model.lm_head])
        fully_shard(model)
        if patch == "after":
            (row,) = liger_hf.apply(model).refused
            assert row.reason == "FSDP gathers it together with other modules"
        return whole(gradients(model, loss))

    for patch in ("before", "after"):
        assert_same(step(patch), step(""))


def check_fsdp2_checkpoint() -> None:
    """Patched and sharded, a step, and the whole checkpoint fits an unpatched model."""
    from torch.distributed.checkpoint import state_dict

    model, plain = sharded("llama", "before", separate_head=True), make("llama")
    gradients(model, loss)
    grads = one_rank("llama")[1]
    for name, parameter in plain.named_parameters():
        parameter.grad = grads[name]
    for trained in (model, plain):
        torch.optim.SGD(trained.parameters(), lr=0.1).step()
    options = state_dict.StateDictOptions(full_state_dict=True)
    state = state_dict.get_model_state_dict(model, options=options)
    assert state.keys() == plain.state_dict().keys()
    loaded = make("llama")
    loaded.load_state_dict(state)
    batch = tokens().to(device())
    torch.testing.assert_close(
        loaded(input_ids=batch).logits, plain(input_ids=batch).logits, rtol=0.0, atol=tolerance()
    )


def flattened(model: nn.Module, *units: nn.Module, **options: object) -> nn.Module:
    """FSDP1: a unit for each decoder layer, for each of `units`, and one for the rest."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import CustomPolicy

    policy = CustomPolicy(lambda module: module in (*model.model.layers, *units))
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=device(), **options
    )


def check_fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    def step(patched: bool) -> tuple:
        model = flattened(make(family, patched))
        value = loss(model)
        value.backward()
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            names = [n.replace("_fsdp_wrapped_module.", "") for n, _ in model.named_parameters()]
            grads = [p.grad for p in model.parameters()]
            return value.detach(), {n: g.clone() for n, g in zip(names, grads, strict=True)}

    for family in ("llama", "qwen2", "qwen3_next"):
        actual, plain = step(True), step(False)
        assert_same(actual, plain)
        assert_same((plain[0], actual[1]), (plain[0], one_rank(family)[1]))


def check_fsdp1_mixed_precision() -> None:
    from torch.distributed.fsdp import MixedPrecision

    def losses(patched: bool) -> list[float]:
        bf16 = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model = flattened(make("gemma2", patched), mixed_precision=bf16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        values = []
        for _ in range(4):
            value = loss(model)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(value.item())
        return values

    actual, plain = losses(True), losses(False)
    assert plain[-1] < 0.9 * plain[0]
    gaps = [abs(a / b - 1) for a, b in zip(actual, plain, strict=True)]
    assert max(gaps) < 0.02, (actual, plain)


def check_fsdp1_refusals() -> None:
    """What does not go says what to do."""
    late = flattened(make("llama"))
    for model in (late, late.module):
        assert {row.reason for row in liger_hf.report(model).rows} == {FLATTENED}
        message = message_of(ValueError, lambda model=model: liger_hf.apply(model))
        assert FLATTENED in message, message

    early = make("llama", patched=True)
    patched = len(liger_hf.report(early).patched)
    early = flattened(early)
    assert len(liger_hf.apply(early).patched) == patched
    read = message_of(RuntimeError, lambda: outputs(early).logits + 0)
    assert "leave outputs.logits unread" in read, read

    # a head in a unit of its own makes its logits
    alone = make("llama", patched=True)
    alone = outputs(flattened(alone, alone.lm_head))
    assert type(alone.logits) is torch.Tensor
    torch.testing.assert_close(alone.loss, outputs(early).loss)


def message_of(kind: type[Exception], call: object) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def work(rank: int, store: str, backend: str) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
        # of convolutions; products have it off
        torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            start = time.perf_counter()
            check()
            if rank == 0:
                print(f"{time.perf_counter() - start:6.2f} s {name}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    # forked, so that the imports are paid once; CUDA does not go through a fork
    start = "fork" if sys.argv[2] == "gloo" else "spawn"
    multiprocessing.start_processes(work, sys.argv[1:], nprocs=RANKS, start_method=start)
