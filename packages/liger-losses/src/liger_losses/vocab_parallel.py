"""What cross entropy over a sharded vocabulary asks of its ranks, and the loss and its derivatives
in terms of the statistics of a row.

    loss = -(1 - s) * log_prob + s * (lse - mean) + z_loss * lse^2

    x [M, N] logits of this rank's shard; target, label and every statistic [M]
    M rows, N classes of a shard, V classes in all, R ranks
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed as dist

from .row_loss import Settings
from .row_stats import Logits, Stats, row_stats_bwd
from .shard_stats import ELSEWHERE, IGNORED, INVALID, combine, shard_stats

__all__ = [
    "Shard",
    "labels_of",
    "losses_of",
    "row_parts",
    "row_stats",
    "shard_of",
    "write_gradient",
    "zero_parts",
]


class Shard(NamedTuple):
    """Classes `start`, ..., `start + N - 1` of V, one of `ranks` such shards in `group`."""

    start: int
    N: int
    V: int
    ranks: int
    group: Any

    def gather(self, part: Tensor) -> Tensor:
        """The part of each rank, [R, ...]."""
        if self.ranks == 1 or not part.numel():
            return part.expand(self.ranks, *part.shape)
        whole = part.new_empty((self.ranks * part.shape[0], *part.shape[1:]))
        # all_gather_into_tensor, its older name, warns where both are
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        all_gather(whole, part, group=self.group)
        return whole.view(self.ranks, *part.shape)

    def sum_(self, t: Tensor) -> None:
        """Sums the t of all ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(t, group=self.group)


def shard_of(
    name: str, N: int, group: Any, vocab_start: int | None, vocab_size: int | None,
    device: torch.device,
) -> Shard:  # fmt: skip
    """The shard of this rank: as given, or as the ranks' N follow from each other, which they then
    have to exchange.
    """
    if (vocab_start is None) != (vocab_size is None):
        raise ValueError(
            f"{name}: vocab_start and vocab_size come together, got {vocab_start} and {vocab_size}"
        )
    there = dist.is_available() and dist.is_initialized()
    if group is not None and not there:
        raise ValueError(f"{name}: group is given, torch.distributed is not initialised")
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if there else (0, 1)
    if rank < 0:
        raise ValueError(f"{name}: this rank is not in the group")
    if vocab_start is None or vocab_size is None:
        sizes = [N]
        if ranks > 1:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise ValueError(f"{name}: give vocab_start and vocab_size to capture a CUDA graph")
            size = torch.full((1,), N, dtype=torch.int64, device=device)
            sizes = Shard(0, N, N, ranks, group).gather(size)[:, 0].tolist()
        vocab_start, vocab_size = sum(sizes[:rank]), sum(sizes)
    whole = ranks > 1 or vocab_size == N
    if vocab_start < 0 or vocab_start + N > vocab_size or vocab_size < 1 or not whole:
        raise ValueError(
            f"{name}: {N} classes from vocab_start {vocab_start} on are no shard of vocab_size "
            f"{vocab_size} over {ranks} ranks"
        )
    return Shard(vocab_start, N, vocab_size, ranks, group)


def labels_of(target: Tensor, ignore_index: int, shard: Shard) -> Tensor:
    """Targets as columns of this shard, or as a code of `shard_stats`."""
    start, end = shard.start, shard.start + shard.N
    label = torch.full_like(target, INVALID)
    label = label.masked_fill((target >= 0) & (target < shard.V), ELSEWHERE)
    label = torch.where((target >= start) & (target < end), target - start, label)
    return label.masked_fill(target == ignore_index, IGNORED)


def row_parts(x: Tensor, label: Tensor, settings: Settings) -> Tensor:
    """What this shard of the rows contributes to their statistics, [K, M]."""
    return shard_stats(x, label, _logits(settings), settings.label_smoothing != 0.0)


def zero_parts(x: Tensor, M: int, settings: Settings) -> Tensor:
    """The parts of M rows that do not count, for logits in the dtype of x."""
    K, dtype = 4 if settings.label_smoothing else 3, torch.promote_types(x.dtype, torch.float32)
    return torch.zeros((K, M), dtype=dtype, device=x.device)


def row_stats(parts: Tensor, shard: Shard, settings: Settings) -> Stats:
    """Statistics of the rows; one collective of a few numbers a row."""
    return combine(shard.gather(parts), shard.V, _logits(settings))


def losses_of(stats: Stats, settings: Settings) -> Tensor:
    """Losses [M]; ignored rows have zeros for statistics, and for a loss."""
    s = settings.label_smoothing
    assert stats.log_prob is not None
    assert stats.lse is not None
    loss = -stats.log_prob if s == 0.0 else (s - 1.0) * stats.log_prob
    if stats.mean is not None:
        loss = loss + s * (stats.lse - stats.mean)
    if settings.z_loss:
        loss = loss + settings.z_loss * stats.lse.square()
    return loss


def write_gradient(
    x: Tensor, label: Tensor, stats: Stats, g: Tensor, shard: Shard, settings: Settings, dx: Tensor
) -> None:
    """Writes into dx, which may be x, the gradient of sum(losses * g); g is [M] or 0-d."""
    s, z_loss, lse = settings.label_smoothing, settings.z_loss, stats.lse
    assert lse is not None
    if not dx.numel():
        return
    g = g.expand(lse.shape).contiguous()
    gs = Stats(
        log_prob=(s - 1.0) * g,
        lse=g * (s + 2.0 * z_loss * lse) if s or z_loss else None,
        # the kernel divides by the N classes that it sees
        mean=g * (-s * shard.N / shard.V) if s else None,
    )
    row_stats_bwd(x, label, stats, gs, _logits(settings), dx)


def _logits(settings: Settings) -> Logits:
    return Logits(IGNORED, settings.softcap, settings.logit_scale)
