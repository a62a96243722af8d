"""An MLP, and ways to call and measure it, for the tests of tiled_mlp."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from liger_activations import TiledMLP, tiled_mlp
from liger_core.testing.running import device
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import dropout, silu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

H, TILES = 16, 5


class MLP(nn.Module):
    """Gated, with dropout; notes the shapes it is called with where `calls` is a list."""

    calls: list | None = None

    def __init__(self, width: int = H, inner: int = 4 * H, out: int = 0, p: float = 0.0) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner, bias=False)
        self.down, self.p = nn.Linear(inner, out or width), p

    def forward(self, x: Tensor) -> Tensor:
        if self.calls is not None:
            self.calls.append(x.shape)
        return self.down(dropout(silu(self.gate(x)) * self.up(x), self.p, self.training))


def build(*sizes: int, **options: float) -> MLP:
    torch.manual_seed(0)
    return MLP(*sizes, **options).to(device())


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator(device()).manual_seed(1)
    x = torch.randn(shape or (3, 7, H), generator=generator, device=device(), dtype=dtype)
    return x.requires_grad_()


def step(function: Callable[[Tensor], Tensor], mlp: nn.Module, x: Tensor) -> list[Tensor]:
    """y, dx, and the parameters' gradients."""
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, *mlp.parameters()))]


def forms(mlp: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """All ways to tile it."""
    yield partial(tiled_mlp, mlp, num_tiles=TILES)
    yield partial(tiled_mlp, mlp.forward, num_tiles=TILES)
    yield partial(tiled_mlp, lambda x: mlp(x), num_tiles=TILES, module=mlp)
    yield TiledMLP(mlp, TILES)


def in_order(mlp: nn.Module) -> Callable[[Tensor], Tensor]:
    """The tiles one after the other, all kept."""
    return lambda x: torch.cat([mlp(tile) for tile in x.view(-1, H).split(TILES)]).view_as(x)


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Storages(TorchDispatchMode):
    """Bytes of what is made inside: the largest tensor, and the most that lives at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.largest = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.live = {key: item for key, item in self.live.items() if not item[0].expired()}
        for storage in _storages(result):
            if storage._cdata not in old:
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        sizes = [size for _, size in self.live.values()]
        self.largest, self.peak = max([self.largest, *sizes]), max(self.peak, sum(sizes))
        return result


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, Tensor)]
