"""What `linear_loss` does between its logits and its function: runs of tokens or of whole groups,
the part of the statistics that the function sees, the gradients it leaves.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from liger_core.kernels import scale_
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .arguments import is_static
from .chunk_loop import Chunks, Grads
from .head_products import whole_rows
from .log_probs import LogProbs, named
from .row_stats import Logits, Stats, row_stats_bwd, row_stats_fwd

__all__ = ["Formed", "Runs", "loss_of_runs", "mapped", "runs_of", "sum_of_counted"]

# groups are kept whole up to this many bytes of logits
WHOLE = 2**30


class Runs(NamedTuple):
    """How N tokens or groups are cut into chunks: the rows that count, if not all do; where each
    run of groups begins, and each run of rows that count; N, and the number of rows that count.
    """

    counting: Tensor | None
    groups: list[int]
    tokens: list[int]


def runs_of(
    x: Tensor, W: Tensor, target: Tensor, ignore_index: int, chunk_bytes: int | None
) -> Runs | None:
    """None where a group is too large for a chunk."""
    flat, static, N = target.reshape(-1), is_static(x), target.shape[0]
    if target.ndim == 1:
        chunks = Chunks(x, W, None, flat, ignore_index, chunk_bytes, static)
        cuts = chunks.cuts if chunks.M else [0, 0]
        return Runs(chunks.index, cuts, cuts)
    counts, index = [flat.numel() // max(N, 1)] * N, None
    if not static and flat.numel():
        valid = (target != ignore_index).reshape(N, -1)
        # the one early look at the device
        found: list[int] = valid.sum(1).tolist()
        if 64 * sum(found) <= 63 * flat.numel():
            counts, index = found, torch.nonzero_static(valid.reshape(-1), size=sum(found))[:, 0]
    rows, largest = Chunks.size(sum(counts), W.shape[0], x, chunk_bytes), max(counts, default=0)
    if largest > rows:
        if chunk_bytes is not None or largest * W.shape[0] * x.element_size() > WHOLE:
            return None
        rows = largest
    groups, tokens, end = [0], [0], 0
    for n, count in enumerate(counts):
        if end + count - tokens[-1] > rows:
            groups.append(n)
            tokens.append(end)
        end += count
    return Runs(index, [*groups, N], [*tokens, end])


class Part(NamedTuple):
    """One run as the function sees it: which of N, the shape of a statistic there, and where in it
    the rows of the chunk are, if they are not all of it in order.
    """

    which: slice | Tensor
    shape: torch.Size
    local: Tensor | None

    def leaves(self, stats: Stats, want: tuple[bool, ...]) -> LogProbs:
        """Statistics as leaves of a graph, zero for tokens that do not count."""
        placed = [self._place(t, -1 if t is stats.argmax else 0) for t in stats]
        found = named(placed, want, self.shape)
        for t in found:
            if t is not None and t.is_floating_point():
                t.requires_grad_()
        return found

    def _place(self, t: Tensor | None, absent: int) -> Tensor | None:
        if t is None or self.local is None:
            return t
        return t.new_full((self.shape.numel(),), absent).index_copy_(0, self.local, t)

    def gradients(self, loss: Tensor, leaves: LogProbs) -> Stats:
        """Of `loss` with respect to the statistics of the chunk's rows."""
        inputs = [t for t in leaves if t is not None and t.requires_grad]
        found = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else ()
        flat = (g if g is None else g.reshape(-1) for g in found)
        gs = (g if g is None or self.local is None else g[self.local] for g in flat)
        by_leaf = dict(zip(map(id, inputs), gs, strict=False))
        log_prob, lse, *more, _ = (by_leaf.get(id(t)) for t in leaves)
        return Stats(log_prob, lse, None, *more)


class Formed(NamedTuple):
    """The loss, its gradients times `scale`, which is None for 1, and aux."""

    loss: Tensor
    grads: Grads
    scale: Tensor | None
    aux: Any


def loss_of_runs(
    function: Callable[..., tuple[Tensor, Any]], chunks: Chunks, runs: Runs, target: Tensor,
    extras: list[Tensor], want: tuple[bool, ...], logits: Logits, need: Sequence[bool],
) -> Formed:  # fmt: skip
    """The loss, the gradients that `need` asks for, and aux."""
    acc = torch.promote_types(chunks.x.dtype, torch.float32)
    loss, grads = torch.zeros((), dtype=acc, device=chunks.x.device), chunks.grads(need)
    scale, first, found = _half_scale(chunks.x), True, []
    for groups, (where, x, labels, buffer) in zip(pairwise(runs.groups), chunks, strict=True):
        stats = row_stats_fwd(buffer, labels, want, logits)
        part = _part_of(target, groups, where)
        leaves = part.leaves(stats, want)
        # no graph where nothing needs it; hooks around it, such as a checkpoint's, are for others
        with torch.set_grad_enabled(any(need)), saved_tensors_hooks(_same, _same):
            losses, aux = function(leaves, *(t[part.which] for t in extras))
            total = sum_of_counted(losses, target[part.which], logits.ignore_index)
        loss += total.detach()
        found.append(mapped(Tensor.detach, aux))
        if any(need) and len(x):
            gs = part.gradients(total, leaves)
            if scale is not None:
                # what a function leaves for tokens that do not count may be NaN
                counts = labels != logits.ignore_index
                gs = Stats(*(g if g is None else g.where(counts, 0.0) for g in gs))
                gs, scale = _scaled(gs, scale, [] if first else grads)
            z = whole_rows(buffer)
            row_stats_bwd(z, labels, stats, gs, logits, z, buffer.shape[1])
            chunks.add(grads, where, x, buffer, first)
            first = False
    return Formed(loss, grads, scale, _whole(found, runs, target))


def _same(t: Tensor) -> Tensor:
    return t


def _part_of(target: Tensor, groups: tuple[int, int], where: slice | Tensor) -> Part:
    if target.ndim == 1:
        return Part(where, target[where].shape, None)
    which = slice(*groups)
    inside = target[which]
    if isinstance(where, slice):
        return Part(which, inside.shape, None)
    return Part(which, inside.shape, where - groups[0] * target[0].numel())


def sum_of_counted(losses: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Sum of the losses of groups, or of those tokens that count."""
    if losses.shape != target.shape[:1]:
        raise ValueError(
            f"linear_loss: function must return losses [{target.shape[0]}], one per leading entry "
            f"of target {tuple(target.shape)}, not {tuple(losses.shape)}"
        )
    return (losses if target.ndim > 1 else losses.where(target != ignore_index, 0.0)).sum()


def _half_scale(x: Tensor) -> Tensor | None:
    """By what gradients are multiplied until the backward, which knows the loss scale: those of a
    mean underflow in fp16. Before the first chunk as much as it may be, see `_scaled`.
    """
    return torch.full((), 2.0**60, device=x.device) if x.dtype == torch.float16 else None


def _scaled(gs: Stats, scale: Tensor, grads: Sequence[Tensor | None]) -> tuple[Stats, Tensor]:
    """`gs` by a power of two: `scale`, or less where they, those of a sum say, would reach 2^10,
    of which sums over classes may not fit fp16; `grads` of earlier chunks are brought to it.
    """
    given = [g.abs().amax() for g in gs if g is not None]
    if not given:
        return gs, scale
    largest = torch.stack(given).amax()
    fits = torch.exp2(torch.floor(10.0 - torch.log2(largest.float())))
    less = torch.minimum(scale, fits)
    for t in grads:
        if t is not None:
            scale_(t, less / scale)
    return Stats(*(None if g is None else g * less for g in gs)), less


def mapped(change: Callable[..., Tensor], *trees: Any) -> Any:
    """`change` of each tensor of trees of one structure: a tensor, a tuple or a dict of trees."""
    first = trees[0]
    if isinstance(first, Tensor):
        return change(*trees)
    if isinstance(first, dict):
        return {name: mapped(change, *(tree[name] for tree in trees)) for name in first}
    parts = (mapped(change, *each) for each in zip(*trees, strict=True))
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _whole(found: list[Any], runs: Runs, target: Tensor) -> Any:
    """The aux of all runs as that of all N."""

    def join(*parts: Tensor) -> Tensor:
        t = torch.cat(parts)
        if target.ndim > 1 or runs.counting is None:
            return t
        return t.new_zeros((len(target), *t.shape[1:])).index_copy_(0, runs.counting, t)

    return mapped(join, *found)
