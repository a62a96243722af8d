"""Gradients that a forward has formed, handed out by the backward; what custom ops of such a pair
share.
"""

from collections.abc import Sequence
from typing import Any

from liger_core.kernels import scale_
from torch import Tensor

from .chunk_loop import grad_dtype

__all__ = ["NAMESPACE", "cast_to_inputs", "fake_grads", "hand_out"]

# the name of this file's package, so that a copied file registers operators of its own
NAMESPACE = __name__.partition(".")[0]


def hand_out(ctx: Any, name: str, g: Tensor) -> tuple[Any, ...]:
    """What was saved, (scale or None, *grads), as grads * scale * g in the memory of the grads, and
    therefore once.
    """
    if ctx.handed_out:
        raise RuntimeError(
            f"{name}: the first backward handed out the gradients, which the forward had formed; "
            "per-token losses, or log-probabilities, form them in each backward"
        )
    ctx.handed_out = True
    scale, *grads = ctx.saved_tensors
    g = g if scale is None else g * scale
    # a graph that is being traced must not write; in eager mode nobody else has these buffers
    return cast_to_inputs(ctx, [
        t if t is None else scale_(t, g) if type(t) is Tensor else t * g.to(t.dtype) for t in grads
    ])  # fmt: skip


def cast_to_inputs(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """The gradients that `ctx.need` asks for, in `ctx.dtypes`, those of the inputs."""
    return tuple(
        t.to(dtype) if need and t is not None else None
        for t, dtype, need in zip(grads, ctx.dtypes, ctx.need, strict=True)
    )


def fake_grads(tensors: Sequence[Tensor | None], need: Sequence[bool]) -> tuple[Tensor, ...]:
    """What an op returns for gradients of x, W and b: empty where they are not asked for."""
    x = tensors[0]
    assert x is not None
    return tuple(
        x.new_empty(0) if t is None or not n else t.new_empty(t.shape, dtype=grad_dtype(i, t))
        for i, (t, n) in enumerate(zip(tensors, need, strict=True))
    )
