"""The loop over chunks of rows behind two linear heads, student and teacher.

z = x_c W^T + b;  y = the same of the teacher, in a buffer of its own
a row function makes losses of z and y, and turns z into dz in place
dx_c = dz W;  dW += dz^T x_c;  db += sum(dz): four products in all

x [M, H]; W [V, H]; b [V] or none; labels [M] or none; z, y [C, V], one buffer each for all chunks
M tokens, H hidden size (each its own), V vocabulary, C rows of a chunk
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .chunk_loop import Chunks, Grads
from .head_products import HeadProducts, logits_buffer

__all__ = ["Teacher", "linear_rows"]


class Teacher:
    """The teacher's head; called for the logits of some rows, which are valid until the next
    call.
    """

    def __init__(self, x: Tensor, W: Tensor, b: Tensor | None):
        self.x, self.products = x, HeadProducts(x, W, b)
        self.buffer: Tensor | None = None

    def __call__(self, where: slice | Tensor, rows: int) -> Tensor:
        # the first chunk is the largest
        if self.buffer is None:
            self.buffer = logits_buffer(rows, self.products.V, self.x)
        return self.products.logits(self.x[where], self.buffer[:rows])


def linear_rows(
    x: Tensor, W: Tensor, b: Tensor | None, labels: Tensor | None, row: Callable[..., Tensor],
    g: Tensor | None, need: Sequence[bool], acc: torch.dtype, ignore_index: int,
    chunk_bytes: int | None, static: bool,
) -> tuple[Tensor, Grads]:  # fmt: skip
    """Losses [M] of row(where, logits, labels, dx, g); with g, 0-d or [M], also the gradients of
    sum(loss * g) that `need` asks for.
    """
    # without labels every row counts, and of the tensor in their place only the length matters
    place = x.new_empty(x.shape[0]) if labels is None else labels
    chunks = Chunks(x, W, b, place, ignore_index, chunk_bytes, static or labels is None)
    loss = torch.zeros(x.shape[0], dtype=acc, device=x.device)
    with_grads = g is not None and any(need)
    grads = chunks.grads(need) if with_grads else Grads(None, None, None)
    for i, (where, x_c, labels_c, logits) in enumerate(chunks):
        dx = logits if with_grads else None
        g_c = g[where] if g is not None and g.ndim else g
        loss[where] = row(where, logits, None if labels is None else labels_c, dx, g_c)
        if with_grads:
            chunks.add(grads, where, x_c, logits, first=i == 0)
    return loss, grads
