"""Cross entropy of logits whose classes are spread over the ranks of a process group.

Each rank reads its shard of the logits once, and the ranks exchange three numbers a row, four with
label smoothing, in one collective: a shard's largest logit, the sum of exponentials next to it, the
target's logit and the sum of logits. What follows from them is the same on every rank. The backward
writes the gradient of the shard from it, without a further collective.

    x [M, N] logits of this rank's shard; target [M]
    M rows, N classes of a shard, V classes in all

Source: Megatron-LM, arXiv:1909.08053, section 3; statistics in `shard_stats`, gradients in
`row_stats`.
"""

from typing import Any

import torch
from liger_core.autograd import once_differentiable
from torch import Tensor

from .arguments import check_loss, mean_scale
from .cross_entropy import cross_entropy_ref
from .row_loss import Settings
from .row_stats import Stats
from .vocab_parallel import (
    labels_of,
    losses_of,
    row_parts,
    row_stats,
    shard_of,
    write_gradient,
)

__all__ = [
    "VocabParallelCrossEntropyLoss",
    "vocab_parallel_cross_entropy",
    "vocab_parallel_cross_entropy_ref",
]


def vocab_parallel_cross_entropy_ref(
    input: Tensor, target: Tensor, *, normalizer: float | Tensor | None = None, **options
) -> Tensor:
    """From the logits of all ranks, [..., V]."""
    reduction = options.pop("reduction", "mean") if normalizer is None else "sum"
    rows, labels = input.reshape(-1, input.shape[-1]), target.reshape(-1)
    loss = cross_entropy_ref(rows, labels, reduction=reduction, **options)
    if normalizer is not None:
        return loss / normalizer
    return loss.reshape(target.shape) if reduction == "none" else loss


class VocabParallelCrossEntropyFunction(torch.autograd.Function):
    """Per-row losses [M]; the reduction is left to torch."""

    @staticmethod
    def forward(ctx, x, label, shard, settings):
        stats = row_stats(row_parts(x, label, settings), shard, settings)
        ctx.save_for_backward(x, label, stats.lse, stats.rest)
        ctx.shard, ctx.settings = shard, settings
        return losses_of(stats, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, label, lse, rest = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        write_gradient(x, label, Stats(lse=lse, rest=rest), g, ctx.shard, ctx.settings, dx)
        return dx, None, None, None


def vocab_parallel_cross_entropy(
    input: Tensor, target: Tensor, *, group: Any = None, vocab_start: int | None = None,
    vocab_size: int | None = None, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None,
    logit_scale: float = 1.0, normalizer: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Cross entropy of logits of which each rank of `group` has a shard of the classes.

    loss = (1 - s) * (lse - z_t) + s / V * sum_j (lse - z_j) + z_loss * lse^2 over all V classes,
    with z = softcap * tanh(logit_scale * x / softcap), or logit_scale * x, and lse = log(sum_j
    exp(z_j)). Every rank calls with the same target and options, gets the same loss, and calls
    backward on it with the same upstream gradient; its input then gets its own gradient.

    Args:
        input: this rank's shard of the logits, [..., N]; float16, bfloat16, float32 or float64. N
            may differ from rank to rank, and be 0.
        target: class indices in [0, V), [...], int64 or int32; the same on every rank.
        group: a `torch.distributed.ProcessGroup`, for a device mesh `mesh.get_group(...)`; by
            default the world, or this process alone where torch.distributed is not initialised.
        vocab_start: the class of this shard's first column, counted over all ranks.
        vocab_size: V. By default of both, shards follow each other in the order of ranks, and their
            sizes are exchanged in every call, at the cost of a collective and a synchronisation
            with the device; given, both are saved. They are given on all ranks or on none.
        ignore_index: targets that do not count; their logits are not read and get a zero gradient.
        reduction: "none", "sum", or "mean" over the targets that count; 0 where none counts.
        label_smoothing: s in [0, 1], over all V classes.
        z_loss: factor of lse^2.
        softcap: bound of the logits, or None.
        logit_scale: factor of the logits, before the softcap.
        normalizer: what "mean" divides by instead, e.g. the number of tokens in all accumulated
            batches; no gradient.

    Returns:
        fp32 (fp64 for float64 logits), a scalar or the shape of `target`, the same on every rank. A
        target out of range gives NaN.

    Communication: 12 bytes a token and rank in the forward, 16 with label smoothing; none in the
    backward. torch.compile(fullgraph=True) works where vocab_start and vocab_size are given;
    otherwise the graph breaks at the exchange of sizes.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; a rank that is not in the group.
        TypeError: dtypes that do not fit; probabilities as targets.

    Source: Megatron-LM, arXiv:1909.08053.
    """
    name = "vocab_parallel_cross_entropy"
    settings = Settings(
        ignore_index, float(label_smoothing), float(z_loss), softcap, float(logit_scale)
    )
    if input.ndim < 1 or target.shape != input.shape[:-1]:
        raise ValueError(
            f"{name}: input {tuple(input.shape)} and target {tuple(target.shape)} must be "
            "[..., N] and [...]"
        )
    if not input.is_floating_point():
        raise TypeError(f"{name}: input {input.dtype} must be floating point")
    N = input.shape[-1]
    shard = shard_of(name, N, group, vocab_start, vocab_size, input.device)
    check_loss(name, target, None, reduction, normalizer, settings, shard.V, input.device)
    x, flat = input.reshape(target.numel(), N), target.reshape(-1)
    x = x if x.stride(-1) == 1 else x.contiguous()
    label = labels_of(flat, ignore_index, shard)
    loss = VocabParallelCrossEntropyFunction.apply(x, label, shard, settings)
    if reduction == "none":
        return loss.reshape(target.shape)
    if reduction == "sum":
        return loss.sum()
    return loss.sum() * mean_scale(flat, None, ignore_index, normalizer, loss.dtype)


class VocabParallelCrossEntropyLoss(torch.nn.Module):
    """`vocab_parallel_cross_entropy` with its options."""

    def __init__(
        self, *, group=None, vocab_start=None, vocab_size=None, ignore_index=-100,
        reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=None, logit_scale=1.0,
    ):  # fmt: skip
        super().__init__()
        self.group = group
        self.settings = {
            "vocab_start": vocab_start, "vocab_size": vocab_size, "ignore_index": ignore_index,
            "reduction": reduction, "label_smoothing": label_smoothing, "z_loss": z_loss,
            "softcap": softcap, "logit_scale": logit_scale,
        }  # fmt: skip

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor:
        return vocab_parallel_cross_entropy(
            input, target, group=self.group, normalizer=normalizer, **self.settings
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())
