"""Two ranks over gloo; run as a script by test_tiled_mlp_context."""

import sys
import warnings
from collections import Counter
from functools import partial

import torch
from liger_activations import TiledMLP, tiled_mlp
from tiled_mlp_cases import MLP, H
from torch import Tensor, distributed as dist, multiprocessing, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode


class Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen[func.name()] += 1
        return func(*args, **(kwargs or {}))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(H), MLP()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


def build(form: str) -> nn.Sequential:
    """Two layers; their MLPs plain, wrapped, or with another forward in place."""
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer())
    for layer in model:
        if form == "wrapped":
            layer.mlp = TiledMLP(layer.mlp, 3)
        elif form == "in place":
            layer.mlp.forward = partial(tiled_mlp, layer.mlp.forward, num_tiles=3)
    return model


def innermost(layer: Layer) -> nn.Module:
    return getattr(layer.mlp, "mlp", layer.mlp)


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def ddp_searching(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def shard_layers(model: nn.Sequential) -> nn.Module:
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def shard_checkpointed_layers(model: nn.Sequential) -> nn.Module:
    return shard_layers(nn.Sequential(*map(checkpoint_wrapper, model)))


def shard_mlps(model: nn.Sequential) -> nn.Module:
    for layer in model:
        fully_shard(layer.mlp)
    return fully_shard(model)


def shard_inside(model: nn.Sequential) -> nn.Module:
    """The MLP in the wrapper, whose own hooks then gather its parameters."""
    for layer in model:
        fully_shard(innermost(layer))
    return fully_shard(model)


def tensor_parallel(model: nn.Module) -> nn.Module:
    plan = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model:
        parallelize_module(innermost(layer), mesh, plan)
    return model


def train(model: nn.Module, seed: int) -> tuple[dict[str, Tensor], Counter, Counter]:
    """Gradients of two backwards, of which the second one synchronizes; how often each parameter
    was finished; collectives.
    """
    finished: Counter[str] = Counter()
    # names without those of wrappers
    named = {
        n.removeprefix("module.").replace("mlp.mlp", "mlp"): p for n, p in model.named_parameters()
    }
    for name, p in named.items():
        p.register_post_accumulate_grad_hook(lambda _, name=name: finished.update([name]))
    with Collectives() as collectives:
        for last in (False, True):
            if isinstance(model, DistributedDataParallel):
                model.require_backward_grad_sync = last
            elif hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(last)
            torch.manual_seed(seed + last)
            model(torch.randn(2, 7, H)).square().sum().backward()
    grads = {name: p.grad for name, p in named.items()}
    whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}
    return whole, finished, collectives.seen


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sharded = (shard_layers, shard_checkpointed_layers, shard_mlps, shard_inside)
    for strategy in (ddp, ddp_searching, *sharded, tensor_parallel):
        # ranks with one batch between them, or with one each; then a tile speaks, too
        parallel = strategy is tensor_parallel
        seed = 0 if parallel else 10 * rank
        expected, once, collectives = train(strategy(build("plain")), seed)
        for form in ("wrapped", "in place"):
            grads, finished, seen = train(strategy(build(form)), seed)
            assert finished == once, (strategy, form, finished)
            assert parallel or seen == collectives, (strategy, form, seen)
            for name, grad in grads.items():
                torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-5)
    dist.destroy_process_group()


if __name__ == "__main__":
    # forked, so that the imports are paid once
    multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
