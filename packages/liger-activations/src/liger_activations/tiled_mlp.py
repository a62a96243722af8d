"""An MLP over tiles of the sequence, computed again in the backward.

    y[t] = mlp(x[t]) for every token t

What the MLP holds between x and y, wider than both as a rule, exists for one tile at a time: the
forward keeps x alone; the backward runs a tile again, differentiates it and goes on to the next.

    x [..., H], y [..., H_out]; T tokens, the product of the dimensions before the last
    dx[tile] = dy[tile] dy/dx(tile);  dp = sum over tiles of dy[tile] dy/dp(tile), p a parameter

The sums are the backward's own, in fp32 (fp64 for fp64), and reach autograd as one gradient a
parameter: whatever waits for gradients (hooks, DDP, FSDP) sees each of them once.

Source: Bekman et al. 2025, arXiv:2506.13996; Chen et al. 2016, arXiv:1604.06174 for recomputation.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from liger_core.autograd import once_differentiable
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from .recompute import Pieces, autocast, autocast_state, reading

__all__ = ["TiledMLP", "tiled_mlp", "tiled_mlp_ref"]


def tiled_mlp_ref(mlp: Callable[..., Tensor], x: Tensor, shared: Sequence[Tensor] = ()) -> Tensor:
    return mlp(x, *shared)


def _tiles(x: Tensor, rows: int) -> list[Tensor]:
    """[1, ..., rows, H], with as many dimensions as x; one tile where x is empty."""
    flat = x.flatten(0, -2) if x.ndim > 1 else x[None]
    tiles = flat.split(rows) if flat.shape[0] else (flat,)
    return [tile[(None,) * (x.ndim - 2)] for tile in tiles]


def _checked(y: Tensor, tile: Tensor) -> Tensor:
    if y.shape[:-1] != tile.shape[:-1]:
        raise ValueError(
            f"tiled_mlp: mlp turned a tile {tuple(tile.shape)} into {tuple(y.shape)}; "
            "only the last dimension may change"
        )
    return y


def tiled_mlp_fwd(run: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """`run` on tiles of `rows` tokens -> y, contiguous."""
    ys: list[Tensor] = []
    for i, tile in enumerate(_tiles(x, rows)):
        out = _checked(run(tile), tile)
        if not ys:
            y = out.new_empty(*x.shape[:-1], out.shape[-1])
            ys = _tiles(y, rows)
        ys[i].view_as(out).copy_(out)
    return y


def _add(total: Tensor | None, grad: Tensor | None, more: bool) -> Tensor | None:
    """Their sum, in a buffer of its own if there is `more` to add."""
    if grad is None:
        return total
    if total is not None:
        return total.add_(grad)
    return grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True) if more else grad


def tiled_mlp_bwd(pieces, rows, needed, dy, x, tensors):
    """dx and the gradients of `tensors`, a list; None where not `needed`."""
    need_x, *need = needed
    stand_ins = pieces.stand_ins(tensors, need)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
    sums: list[Any] = [None] * len(tensors)
    xs, dys, dxs = (_tiles(t, rows) for t in (x, dy, x if dx is None else dx))
    outside = autocast_state(pieces.device)
    # around all tiles, so that a parameter is cast once
    with autocast(pieces.autocast):
        for i, tile in enumerate(xs):
            tile = tile.detach().requires_grad_(need_x)
            dtile, *grads = pieces.grads(i, tile, stand_ins, dys[i], outside)
            if need_x:
                dxs[i].copy_(dtile) if dtile is not None else dxs[i].zero_()
            del tile, dtile
            while grads:
                j = len(grads) - 1
                sums[j] = _add(sums[j], grads.pop(), more=len(xs) > 1)
    for j, tensor in enumerate(tensors):
        if sums[j] is not None:
            sums[j] = sums[j].to(tensor.dtype)
    return [dx, *sums]


class TiledMLPFunction(torch.autograd.Function):
    """Keeps x, parameters and shared tensors and has the backward of all; `_TilesFunction`, applied
    to its result, makes y. They are two because `torch.utils.checkpoint` repeats a region up to the
    last tensor kept in it, which so comes before the work.
    """

    @staticmethod
    def forward(ctx, pieces, rows, incoming, x, *tensors):
        ctx.pieces, ctx.rows, ctx.incoming = pieces, rows, incoming
        ctx.save_for_backward(x, *tensors)
        return x.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        x, *tensors = ctx.saved_tensors
        dy, needed = ctx.incoming.pop(), ctx.needs_input_grad[3:]
        return None, None, None, *tiled_mlp_bwd(ctx.pieces, ctx.rows, needed, dy, x, tensors)


class _TilesFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pieces, rows, incoming, kept, x, shared):
        ctx.incoming = incoming
        return tiled_mlp_fwd(lambda tile: pieces.first(tile, shared), x, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        ctx.incoming.append(dy)
        return None, None, None, dy.new_zeros(0), None, None


def _traced(mlp, module, x, rows, shared):
    """For torch.compile, which differentiates the whole at once and so has one gradient a
    parameter. Those of 16 bits go through fp32, for their gradients to be summed there.
    """
    named = {} if module is None else dict(module.named_parameters(remove_duplicate=False))
    named = {n: p for n, p in named.items() if p.requires_grad and p.element_size() == 2}
    wide = {name: p.float() for name, p in named.items()}

    def run(tile):
        if not wide:
            return mlp(tile, *shared)
        with reading(module, {name: wide[name].to(p.dtype) for name, p in named.items()}):
            return mlp(tile, *shared)

    ys = [_checked(checkpoint(run, tile, use_reentrant=False), tile) for tile in _tiles(x, rows)]
    return torch.cat([y.flatten(0, -2) for y in ys]).view(*x.shape[:-1], ys[0].shape[-1])


def _hooked(module: Module) -> bool:
    names = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, name) for name in names)


def _inside_hooks(mlp, x, num_tiles, shared):
    """Calls the module once, with the whole x, and tiles what its hooks surround: with those of
    FSDP its parameters are gathered once, and are there when they are asked for. For one thread.
    """
    forward, own = mlp.forward, vars(mlp).get("forward")
    mlp.forward = lambda x, *s: tiled_mlp(forward, x, num_tiles, module=mlp, shared=s)
    try:
        return mlp(x, *shared)
    finally:
        del mlp.forward
        if own is not None:
            mlp.forward = own


def tiled_mlp(
    mlp: Callable[..., Tensor],
    x: Tensor,
    num_tiles: int | None = None,
    *,
    module: Module | None = None,
    shared: Sequence[Tensor] = (),
) -> Tensor:
    """mlp(x, *shared) over tiles of tokens, each computed again in the backward.

    Args:
        mlp: a module or a function that treats every token alike: a tile [1, ..., t, H], of as many
            dimensions as x but at least 2, and `shared` -> [1, ..., t, H_out].
        x: [..., H], of a floating-point dtype.
        num_tiles: the most tiles to take, all but the last of one size; by default ceil(T / H),
            with which a tile's intermediate tensors are as large as the weights.
        module: whose parameters `mlp` reads, where it is neither a module nor a method of one.
        shared: further tensors that `mlp` gets with each tile, and that get gradients.

    Returns:
        [..., H_out], of the dtype that `mlp` returns.

    Each parameter gets one gradient a backward, summed over tiles in fp32 (fp64 for fp64). Random
    numbers and autocast in the backward are those of the forward; buffers are written twice. Hooks
    of `mlp` itself run once, around all tiles, those of modules inside for each tile and again.
    FSDP may shard `mlp` or what contains it (the first FSDP with use_orig_params), not modules
    inside. As the last that keeps tensors in a `torch.utils.checkpoint` that is not reentrant, it
    costs no further run. With

        layer.mlp.forward = functools.partial(tiled_mlp, layer.mlp.forward)

    a model is tiled and keeps its modules and state dict.

    Peak memory: one tile's tensors besides x and y, in the backward also dx, dy, one tile's
    gradients of the parameters and 4 bytes for each of their elements.

    Raises:
        ValueError: `num_tiles` below 1; x without rows of floating point; `mlp` changes the number
            of tokens, or reads a tensor that needs a gradient and is not named (in the backward).
        RuntimeError: random numbers during CUDA graph capture, where they cannot be drawn again.

    Source: Bekman et al. 2025, arXiv:2506.13996.
    """
    if num_tiles is not None and (not isinstance(num_tiles, int) or num_tiles < 1):
        raise ValueError(f"tiled_mlp: num_tiles must be a positive integer, not {num_tiles!r}")
    if x.ndim == 0 or not x.is_floating_point():
        raise ValueError(f"tiled_mlp: x {tuple(x.shape)}, {x.dtype}, must be floating-point rows")
    T, H = x.numel() // max(x.shape[-1], 1), max(x.shape[-1], 1)
    rows = max(-(-T // (num_tiles or max(-(-T // H), 1))), 1)
    if module is None:
        # Dynamo does not find __self__ with getattr
        owner = mlp.__self__ if inspect.ismethod(mlp) else mlp
        module = owner if isinstance(owner, Module) else None
    if torch.compiler.is_compiling():
        return _traced(mlp, module, x, rows, shared)
    if isinstance(mlp, Module) and _hooked(mlp):
        return _inside_hooks(mlp, x, num_tiles, shared)
    pieces = Pieces(mlp, module, x.device)
    tensors = (*pieces.parameters, *shared)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors))):
        return tiled_mlp_fwd(lambda tile: mlp(tile, *shared), x, rows)
    call: tuple[Any, ...] = pieces, rows, []
    kept = TiledMLPFunction.apply(*call, x, *tensors)
    return _TilesFunction.apply(*call, kept, x.detach(), shared)


class TiledMLP(Module):
    """`tiled_mlp` around a module, whose parameters are then called `mlp.<name>`.

    Args:
        mlp: the module.
        num_tiles: as in `tiled_mlp`.
    """

    def __init__(self, mlp: Module, num_tiles: int | None = None):
        super().__init__()
        self.mlp, self.num_tiles = mlp, num_tiles

    def forward(self, x: Tensor, *shared: Tensor) -> Tensor:
        return tiled_mlp(self.mlp, x, self.num_tiles, shared=shared)

    def extra_repr(self) -> str:
        return f"num_tiles={self.num_tiles}"
