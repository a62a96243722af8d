"""Statistics of a linear head's logits as operators of torch: what eager mode and torch.compile
share.

Chunks of rows as in `chunk_loop`. The backward makes a chunk's logits again, unless one chunk held
them all: those are kept. Nothing here writes an argument.
"""

from collections.abc import Iterator

import torch
from liger_core.autograd import once_differentiable
from torch import Tensor

from .chunk_loop import Chunks, grad_dtype
from .handed_out import NAMESPACE, cast_to_inputs
from .head_products import logits_buffer, whole_rows
from .row_stats import Logits, Stats, row_stats_bwd, row_stats_fwd

__all__ = ["head_stats"]

_ARGMAX = Stats._fields.index("argmax")


@torch.library.custom_op(f"{NAMESPACE}::head_stats", mutates_args=())
def head_stats(
    x: Tensor, W: Tensor, b: Tensor | None, target: Tensor, want: list[bool], need: list[bool],
    ignore_index: int, softcap: float | None, logit_scale: float, chunk_bytes: int | None,
    static: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The fields of `Stats`, then the logits that were kept and the rows that count; [0] where
    absent.
    """
    logits = Logits(ignore_index, softcap, logit_scale)
    chunks = Chunks(x, W, b, target, ignore_index, chunk_bytes, static)
    stats = [
        t.fill_(-1 if i == _ARGMAX else 0) for i, t in enumerate(_empty(x, target.numel(), want))
    ]
    kept = x.new_empty(0)
    for where, _, target_c, buffer in chunks:
        part = row_stats_fwd(buffer, target_c, tuple(want), logits)
        for whole, values in zip(stats, part, strict=True):
            if values is not None:
                whole[where] = values
        if any(need) and chunks.rows >= chunks.M:
            kept = buffer
    index = target.new_empty(0) if chunks.index is None else chunks.index[None]
    log_prob, lse, rest, entropy, mean, squares, argmax = stats
    return log_prob, lse, rest, entropy, mean, squares, argmax, kept, index


def _empty(x: Tensor, M: int, want: list[bool]) -> list[Tensor]:
    acc = torch.promote_types(x.dtype, torch.float32)
    kinds = (*[acc] * _ARGMAX, torch.int64)
    return [
        x.new_empty(M if w else 0, dtype=kind)
        for kind, w in zip(kinds, (True, True, True, *want), strict=True)
    ]


@head_stats.register_fake
def _(x, W, b, target, want, need, ignore_index, softcap, logit_scale, chunk_bytes, static):
    rows = Chunks.size(target.numel(), W.shape[0], x, chunk_bytes)
    keeps = any(need) and 0 < target.numel() <= rows
    kept = logits_buffer(target.numel(), len(W), x) if keeps else x.new_empty(0)
    return *_empty(x, target.numel(), want), kept, target.new_empty(0)


@torch.library.custom_op(f"{NAMESPACE}::head_stats_backward", mutates_args=())
def head_stats_backward(
    gs: list[Tensor], given: list[bool], x: Tensor, W: Tensor, b: Tensor | None, target: Tensor,
    lse: Tensor, rest: Tensor, entropy: Tensor, squares: Tensor, kept: Tensor, index: Tensor,
    need: list[bool], ignore_index: int, softcap: float | None, logit_scale: float,
    chunk_bytes: int | None, static: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dW, db), [0] where absent; `gs` are the gradients of those `Stats` that are `given`."""
    whole = Stats(lse=lse, rest=rest, entropy=entropy, squares=squares)
    upstream = iter(gs)
    gradients = [next(upstream) if g else None for g in given]
    # rows that count, as the forward saw them: the device is asked once
    rows = index[0] if index.ndim == 2 else None
    chunks = Chunks(
        x, W, b, target, ignore_index, chunk_bytes, static or index.ndim == 1, index=rows
    )
    grads = chunks.grads(need)
    for i, (where, x_c, target_c, logits, dz) in enumerate(_logits(chunks, kept)):
        row_stats_bwd(
            logits, target_c, _part(whole, where), _part(Stats(*gradients), where),
            Logits(ignore_index, softcap, logit_scale), dz, len(W),
        )  # fmt: skip
        chunks.add(grads, where, x_c, dz[:, : len(W)], first=i == 0)
    dx, dW, db = (x.new_empty(0) if t is None else t for t in grads)
    return dx, dW, db


def _logits(
    chunks: Chunks, kept: Tensor
) -> Iterator[tuple[slice | Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """(which rows, their x, their target, their logits, where to write the gradient of those); the
    last two with what may be written beyond the classes.
    """
    if kept.numel():
        where = slice(0, chunks.M) if chunks.index is None else chunks.index
        dz = logits_buffer(chunks.M, chunks.products.V, chunks.x)
        yield where, chunks.x[where], chunks.target[where], kept, dz
    else:
        for where, x, target, logits in chunks:
            z = whole_rows(logits)
            yield where, x, target, z, z


def _part(stats: Stats, where: slice | Tensor) -> Stats:
    return Stats(*(t[where] if t is not None and t.numel() else None for t in stats))


@head_stats_backward.register_fake
def _(gs, given, x, W, b, target, lse, rest, entropy, squares, kept, index, need, *settings):
    return tuple(
        x.new_empty(0) if t is None or not n else t.new_empty(t.shape, dtype=grad_dtype(i, t))
        for i, (t, n) in enumerate(zip((x, W, b), need, strict=True))
    )


def _stats_context(ctx, inputs, output):
    x, W, b, target, want, need, *settings = inputs
    _, lse, rest, entropy, _, squares, argmax, kept, index = output
    ctx.need, ctx.settings = need, settings
    entropy_there, mean_there, squares_there, _ = want
    ctx.there = (True, True, False, entropy_there, mean_there, squares_there, False)
    ctx.dtypes = [None if t is None else t.dtype for t in (x, W, b)]
    ctx.mark_non_differentiable(rest, argmax, kept, index)
    # most statistics are not part of a loss
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, W, b, target, lse, rest, entropy, squares, kept, index)


@once_differentiable
def _stats_backward(ctx, *gs):
    # the statistics come first among the outputs
    pairs = list(zip(gs, ctx.there, strict=False))
    given = [there and g is not None for g, there in pairs]
    if not any(given):
        return (None,) * 11
    used = [g.contiguous() for g, there in pairs if there and g is not None]
    grads = head_stats_backward(used, given, *ctx.saved_tensors, ctx.need, *ctx.settings)
    return *cast_to_inputs(ctx, grads), *(None,) * 8


head_stats.register_autograd(_stats_backward, setup_context=_stats_context)
