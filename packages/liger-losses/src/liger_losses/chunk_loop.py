"""The loop over chunks of rows behind a linear head.

logits = x_c W^T + b;  the row kernel turns them into dz in place
dx_c = dz W;  dW += dz^T x_c;  db += sum(dz)

x [M, H]; W [V, H]; b [V] or none; target [M]; logits, dz [C, V], one buffer for all chunks
M tokens, H hidden size, V vocabulary, C rows of a chunk
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from liger_core.device import use_kernels
from liger_core.kernels import column_sum
from torch import Tensor

from .head_products import HeadProducts, logits_buffer, whole_rows
from .row_loss import Rows, Settings, empty_rows, row_loss_bwd, row_loss_fwd

__all__ = ["Chunks", "Grads", "grad_dtype", "linear_cross_entropy_bwd", "linear_cross_entropy_fwd"]


class Grads(NamedTuple):
    """Gradients of x, W and b, each None where it is not asked for."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def grad_dtype(i: int, t: Tensor) -> torch.dtype:
    """In which dtype the gradient of x, W or b (i = 0, 1, 2) is summed: half-precision sums over
    all tokens need fp32.

    bfloat16 has the range, and 16 roundings of a running dW add little to the one that a single
    product makes.
    """
    if i == 0 or (i == 1 and t.dtype != torch.float16):
        return t.dtype
    return torch.promote_types(t.dtype, torch.float32)


def _chunk_rows(M: int, V: int, itemsize: int, kernels: bool, chunk_bytes: int | None) -> int:
    """Rows of a chunk: 2048 keep a GPU's products at their full rate, 8 MiB of logits a CPU's;
    equal chunks, 16 at most.
    """
    if chunk_bytes is not None:
        rows = max(chunk_bytes // (V * itemsize), 1)
        rows = rows // 128 * 128 or rows
    elif kernels:
        rows = max(2048, 2**28 // (V * itemsize), -(-M // 16))
    else:
        rows = max(128, 2**23 // (V * itemsize))
    chunks = -(-M // rows)
    even = -(-M // max(chunks, 1))
    return min(-(-even // 128) * 128, rows) if rows >= 128 else rows


class Chunks:
    """The loop over chunks of rows: logits in one buffer, gradients gathered from what the row
    kernel leaves there.
    """

    def __init__(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        target: Tensor,
        ignore_index: int,
        chunk_bytes: int | None,
        static: bool,
        index: Tensor | None = None,
        cuts: list[int] | None = None,
        classes: int | None = None,
    ):
        self.x, self.W, self.b, self.target = x, W, b, target
        # one early look at the device; without it every token is computed
        if index is None and not static:
            index = (target != ignore_index).nonzero().squeeze(1)
        # the last token of each sequence alone is not worth a gather
        few = index is not None and 64 * index.numel() <= 63 * target.numel()
        self.index = index if few else None
        self.M = target.numel() if self.index is None else self.index.numel()
        if cuts is None:
            # shards of a vocabulary must cut alike, whatever their number of classes
            rows = Chunks.size(self.M, classes or W.shape[0], x, chunk_bytes)
            cuts = [*range(0, self.M, rows), self.M]
        # where each chunk begins, and the last one ends, among the rows that count
        self.cuts = cuts
        self.rows = max((b - a for a, b in pairwise(cuts)), default=0)

    @cached_property
    def products(self) -> HeadProducts:
        return HeadProducts(self.x, self.W, self.b)

    @staticmethod
    def size(M: int, V: int, x: Tensor, chunk_bytes: int | None) -> int:
        """Rows of a chunk of M in all."""
        return max(_chunk_rows(M, V, x.element_size(), use_kernels(x), chunk_bytes), 1)

    def grads(self, need: Sequence[bool]) -> Grads:
        """Buffers for the gradients that are needed."""
        x, W, b = self.x, self.W, self.b
        whole = self.index is None and self.M
        fill = (
            torch.empty if whole else torch.zeros,
            torch.empty if self.M else torch.zeros,
            torch.zeros,
        )
        return Grads(
            *(
                make(t.shape, dtype=grad_dtype(i, t), device=t.device)
                if n and t is not None
                else None
                for i, (make, t, n) in enumerate(zip(fill, (x, W, b), need, strict=True))
            )
        )

    def __iter__(self) -> Iterator[tuple[slice | Tensor, Tensor, Tensor, Tensor]]:
        """Yields (which rows, their x, their target, their logits in the buffer)."""
        buffer = logits_buffer(self.rows, self.W.shape[0], self.x)
        for at in map(slice, self.cuts, self.cuts[1:]):
            where = at if self.index is None else self.index[at]
            x = self.x[where]
            yield where, x, self.target[where], self.products.logits(x, buffer[: len(x)])

    def add(self, grads: Grads, where: slice | Tensor, x: Tensor, dz: Tensor, first: bool) -> None:
        """Adds the gradients that follow from dz, the gradient of a chunk's logits."""
        if grads.x is not None:
            if isinstance(where, slice):
                self.products.input_grad(dz, grads.x[where])
            else:
                grads.x.index_copy_(0, where, self.products.input_grad(dz, torch.empty_like(x)))
        if grads.weight is not None:
            self.products.add_weight_grad(dz, x, grads.weight, first)
        if grads.bias is not None:
            grads.bias.add_(column_sum(dz, grads.bias.dtype))


def linear_cross_entropy_fwd(
    x: Tensor, W: Tensor, b: Tensor | None, target: Tensor, weight: Tensor | None,
    g: Tensor | None, need: Sequence[bool], settings: Settings, chunk_bytes: int | None,
    static: bool, metrics: bool, by_probability: bool,
) -> tuple[Rows, Grads]:  # fmt: skip
    """Loss and statistics of each row; with `g`, 0-d or [M], also the gradients of sum(loss * g)
    that `need` asks for. `metrics` and `by_probability` as in `row_loss_fwd`.
    """
    chunks = Chunks(x, W, b, target, settings.ignore_index, chunk_bytes, static)
    rows = empty_rows(target.numel(), x, metrics, by_probability)
    for name, whole in rows._asdict().items():
        if whole is not None:
            whole.fill_(-1 if name == "argmax" else 0)
    with_grads = g is not None and any(need)
    grads = chunks.grads(need) if with_grads else Grads(None, None, None)
    for i, (where, x_c, target_c, logits) in enumerate(chunks):
        z = whole_rows(logits)
        part = row_loss_fwd(
            z, target_c, weight, settings, z if with_grads else None,
            g[where] if g is not None and g.ndim else g, metrics, by_probability, len(W),
        )  # fmt: skip
        for whole, values in zip(rows, part, strict=True):
            if whole is not None and values is not None:
                whole[where] = values
        if with_grads:
            chunks.add(grads, where, x_c, logits, first=i == 0)
    return rows, grads


def linear_cross_entropy_bwd(
    g: Tensor, x: Tensor, W: Tensor, b: Tensor | None, target: Tensor, weight: Tensor | None,
    rows: Rows, need: Sequence[bool], settings: Settings, chunk_bytes: int | None, static: bool,
) -> Grads:  # fmt: skip
    """Gradients of sum(loss * g), g [M], from logits made again chunk by chunk."""
    chunks = Chunks(x, W, b, target, settings.ignore_index, chunk_bytes, static)
    grads = chunks.grads(need)
    for i, (where, x_c, target_c, logits) in enumerate(chunks):
        part = Rows(*(t[where] for t in rows if t is not None))
        z = whole_rows(logits)
        row_loss_bwd(z, target_c, weight, settings, part, z, g[where], len(W))
        chunks.add(grads, where, x_c, logits, first=i == 0)
    return grads
