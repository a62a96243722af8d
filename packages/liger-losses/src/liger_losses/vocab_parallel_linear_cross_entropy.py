"""Cross entropy of a linear head whose classes are spread over the ranks of a process group,
without its logits.

The chunks of rows of `linear_cross_entropy`: a matrix product fills a buffer with this shard's
logits, the ranks exchange a few numbers a row, the row kernel turns the logits into their gradient
in place, two more products make dx and a summand of dW. The statistics of whole rows are needed
before a chunk's buffer is used again, hence one small collective a chunk. Where nothing is
differentiated, and with `reduction="none"`, whose backward makes the logits again, the forward
keeps only numbers of rows: one collective in all.

    x [M, H], the same on every rank; W [N, H], b [N] of this rank's shard; target [M]
    M tokens, H hidden size, N classes of a shard, V classes in all, C rows of a chunk
    dx = sum_ranks dz W;  dW = dz^T x;  db = sum(dz)
    memory beside the inputs: C N + M H + N H elements, without dx and dW where they are frozen

Source: Megatron-LM, arXiv:1909.08053, section 3; forming gradients in the forward: Liger Kernel,
arXiv:2410.10989.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from liger_core.autograd import autocast, once_differentiable
from liger_core.kernels import ceil_div
from torch import Tensor

from .arguments import check_head, check_loss, is_static, mean_scale
from .chunk_loop import Chunks
from .handed_out import cast_to_inputs, hand_out
from .row_loss import Settings
from .row_stats import Stats
from .shard_stats import IGNORED
from .vocab_parallel import (
    Shard,
    labels_of,
    losses_of,
    row_parts,
    row_stats,
    shard_of,
    write_gradient,
    zero_parts,
)

__all__ = ["vocab_parallel_linear_cross_entropy"]

_NAME = "vocab_parallel_linear_cross_entropy"


class Plan(NamedTuple):
    """What forward and backward share besides tensors."""

    shard: Shard
    settings: Settings
    need: Sequence[bool]
    reduce_input_grad: bool
    chunk_bytes: int | None
    static: bool

    def chunks(
        self, x: Tensor, W: Tensor, b: Tensor | None, label: Tensor, index: Tensor | None = None
    ) -> Chunks:
        # all ranks have the same chunks, those of a shard of average size
        classes = ceil_div(self.shard.V, self.shard.ranks)
        return Chunks(
            x, W, b, label, IGNORED, self.chunk_bytes, self.static, index, classes=classes
        )

    def whole(self, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """The gradients of x, W and b, with that of x summed over the ranks if so planned."""
        if grads[0] is not None and self.reduce_input_grad:
            self.shard.sum_(grads[0])
        return grads


class LinearFunction(torch.autograd.Function):
    """Scalar loss sum(losses) * scale; the gradients are formed in the forward."""

    @staticmethod
    def forward(ctx, x, W, b, label, scale, plan):
        ctx.plan, ctx.need, ctx.handed_out = plan, plan.need, False
        ctx.dtypes = [None if t is None else t.dtype for t in (x, W, b)]
        shard, settings = plan.shard, plan.settings
        # fp16 gradients of a mean underflow: they stay gradients of the sum until the backward
        # knows the loss scale
        half = x.dtype == torch.float16
        g = torch.ones_like(scale) if half else scale
        chunks = plan.chunks(x, W, b, label)
        loss, grads = torch.zeros_like(scale), chunks.grads(plan.need)
        for i, (where, x_c, label_c, logits) in enumerate(chunks):
            stats = row_stats(row_parts(logits, label_c, settings), shard, settings)
            loss += losses_of(stats, settings).sum()
            write_gradient(logits, label_c, stats, g, shard, settings, logits)
            chunks.add(grads, where, x_c, logits, first=i == 0)
        ctx.save_for_backward(scale if half else None, *grads)
        return loss * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return *ctx.plan.whole(hand_out(ctx, _NAME, g)), None, None, None


class LinearPerTokenFunction(torch.autograd.Function):
    """Losses [M]; the backward makes the logits again."""

    @staticmethod
    def forward(ctx, x, W, b, label, plan):
        ctx.plan, ctx.need = plan, plan.need
        ctx.dtypes = [None if t is None else t.dtype for t in (x, W, b)]
        chunks = plan.chunks(x, W, b, label)
        # rows that do not count are left with the zeros of such
        parts = zero_parts(x, label.numel(), plan.settings)
        for where, _, label_c, logits in chunks:
            parts[:, where] = row_parts(logits, label_c, plan.settings)
        stats = row_stats(parts, plan.shard, plan.settings)
        ctx.save_for_backward(x, W, b, label, stats.lse, stats.rest, chunks.index)
        return losses_of(stats, plan.settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        *tensors, label, lse, rest, index = ctx.saved_tensors
        # the device has been asked which rows count
        plan = ctx.plan._replace(static=True)
        chunks = plan.chunks(*tensors, label, index)
        grads = chunks.grads(plan.need)
        for i, (where, x_c, label_c, logits) in enumerate(chunks):
            stats = Stats(lse=lse[where], rest=rest[where])
            write_gradient(logits, label_c, stats, g[where], plan.shard, plan.settings, logits)
            chunks.add(grads, where, x_c, logits, first=i == 0)
        return *plan.whole(cast_to_inputs(ctx, grads)), None, None


def vocab_parallel_linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    group: Any = None, vocab_start: int | None = None, vocab_size: int | None = None,
    reduce_input_grad: bool = True, reduction: str = "mean", ignore_index: int = -100,
    label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None,
    logit_scale: float = 1.0, normalizer: float | Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Cross entropy of a linear head of which each rank of `group` has a shard of the classes,
    without logits.

    The loss of `vocab_parallel_cross_entropy` of input @ linear_weight.T + linear_bias. Every rank
    calls with the same input, target and options, gets the same loss, and calls backward on it with
    the same upstream gradient. What requires a gradient does so on every rank.

    Args:
        input: hidden states x, [..., H], the same on every rank; float16, bfloat16, float32 or
            float64.
        linear_weight: this rank's shard of W, [N, H], in the dtype of x; under autocast both are
            cast as by a linear layer. N may differ from rank to rank, and be 0.
        target: class indices in [0, V), [...], int64 or int32; the same on every rank.
        linear_bias: this rank's shard, [N], or None.
        group, vocab_start, vocab_size: as in `vocab_parallel_cross_entropy`.
        reduce_input_grad: sum the gradient of the input over the ranks, in one all-reduce at the
            end of the backward, in the dtype of x: what is before the head then sees the whole
            gradient, as the input that all ranks have alike requires. False leaves this rank's
            summand, for an input that an operator with a reduction of its own has made, such as
            the all-gather of sequence parallelism, whose backward is a reduce-scatter.
        reduction: "mean" over the targets that count, "sum", or "none". "none" keeps nothing but
            two numbers a token and makes the logits again in the backward: four products instead
            of three.
        ignore_index: targets that do not count; where more than one in 64 is such, their tokens are
            left out of every product.
        label_smoothing, z_loss, softcap, logit_scale, normalizer: as in
            `vocab_parallel_cross_entropy`.
        chunk_bytes: bytes of a chunk's logits in a shard of average size; by default and otherwise
            as in `linear_cross_entropy`.

    Returns:
        fp32 (fp64 for float64), a scalar or the shape of `target`, the same on every rank. 0 where
        no token counts; NaN for a target out of range.

    Memory of forward and backward beside the inputs: C N + M H + N H elements for C rows a chunk;
    what is frozen is left out. Communication: 12 bytes a token and rank, 16 with label smoothing,
    in one collective a chunk, or one in all for "none" and where nothing is differentiated; and the
    gradient of the input. Reading which tokens count takes one early synchronisation with the
    device; under CUDA-graph capture, which needs vocab_start and vocab_size, there is none, and
    every token is computed. Under torch.compile the graph breaks here, and the op runs as it is.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; a rank that is not in the group.
        TypeError: dtypes that do not fit; probabilities as targets.
        RuntimeError: a second backward of "mean" or "sum", whose gradients are formed in the
            forward.

    Source: Megatron-LM, arXiv:1909.08053; Liger Kernel, arXiv:2410.10989.
    """
    settings = Settings(
        ignore_index, float(label_smoothing), float(z_loss), softcap, float(logit_scale)
    )
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_head(_NAME, input, linear_weight, target, linear_bias)
    N, H = linear_weight.shape
    shard = shard_of(_NAME, N, group, vocab_start, vocab_size, input.device)
    check_loss(_NAME, target, None, reduction, normalizer, settings, shard.V, input.device)
    flat = target.reshape(-1)
    scale = torch.ones(
        (), dtype=torch.promote_types(input.dtype, torch.float32), device=flat.device
    )
    if reduction == "mean":
        scale = mean_scale(flat, None, ignore_index, normalizer, scale.dtype)
    # Dynamo would compile whatever pieces it can
    run = torch.compiler.disable(_loss) if torch.compiler.is_compiling() else _loss
    loss = run(
        input.reshape(-1, H), linear_weight, linear_bias, labels_of(flat, ignore_index, shard),
        None if reduction == "none" else scale, shard, settings, reduce_input_grad, chunk_bytes,
    )  # fmt: skip
    return loss.reshape(target.shape if reduction == "none" else ())


def _loss(
    x: Tensor, W: Tensor, b: Tensor | None, label: Tensor, scale: Tensor | None, shard: Shard,
    settings: Settings, reduce_input_grad: bool, chunk_bytes: int | None,
) -> Tensor:  # fmt: skip
    """Losses [M] where no `scale` is given, else their sum times it."""
    grad = torch.is_grad_enabled()
    need = [grad and t is not None and t.requires_grad for t in (x, W, b)]
    plan = Plan(shard, settings, need, reduce_input_grad, chunk_bytes, is_static(x))
    if scale is not None and any(need):
        return LinearFunction.apply(x, W, b, label, scale, plan)
    losses = LinearPerTokenFunction.apply(x, W, b, label, plan)
    return losses if scale is None else losses.sum() * scale
