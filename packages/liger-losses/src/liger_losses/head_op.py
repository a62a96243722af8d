"""The loss of a linear head as an operator of torch: what eager mode and torch.compile share.

The operator returns the gradients beside the loss, since its chunk loop forms both at once. Its
backward multiplies them by the upstream gradient; that of per-token losses, whose upstream gradient
the forward cannot know, runs the loop again. Nothing here writes an argument.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk_loop import grad_dtype, linear_cross_entropy_bwd, linear_cross_entropy_fwd
from .handed_out import cast_to_inputs, hand_out
from .row_loss import Rows, Settings

__all__ = ["head_loss"]

# the name of this file's package, so that a copied file registers operators of its own
_NAMESPACE = __name__.partition(".")[0]


@torch.library.custom_op(f"{_NAMESPACE}::head_loss", mutates_args=())
def head_loss(
    x: Tensor, W: Tensor, b: Tensor | None, target: Tensor, weight: Tensor | None, scale: Tensor,
    need: list[bool], ignore_index: int, label_smoothing: float, z_loss: float,
    softcap: float | None, logit_scale: float, chunk_bytes: int | None, static: bool,
    per_token: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, lse, rest, dx, dW, db): losses [M] if `per_token`, else sum(loss) * scale and its
    gradients; [0] where absent.
    """
    settings = Settings(ignore_index, label_smoothing, z_loss, softcap, logit_scale)
    # fp16 gradients of a mean underflow: they stay gradients of the sum until the backward knows
    # the loss scale
    g = torch.ones_like(scale) if x.dtype == torch.float16 else scale
    rows, grads = linear_cross_entropy_fwd(
        x, W, b, target, weight, None if per_token else g, need, settings, chunk_bytes, static
    )
    loss = rows.loss if per_token else rows.loss.sum() * scale
    dx, dW, db = (x.new_empty(0) if t is None else t for t in grads)
    return loss, rows.lse, rows.rest, dx, dW, db


@head_loss.register_fake
def _(x, W, b, target, weight, scale, need, *settings):
    per_token = settings[-1]
    row = x.new_empty(x.shape[0], dtype=scale.dtype)
    shapes = (x, W, b)
    grads = (
        x.new_empty(0)
        if t is None or per_token or not n
        else t.new_empty(t.shape, dtype=grad_dtype(i, t))
        for i, (t, n) in enumerate(zip(shapes, need, strict=True))
    )
    return (
        row if per_token else row.new_empty(()),
        torch.empty_like(row),
        torch.empty_like(row),
        *grads,
    )


@torch.library.custom_op(f"{_NAMESPACE}::head_loss_backward", mutates_args=())
def head_loss_backward(
    g: Tensor, x: Tensor, W: Tensor, b: Tensor | None, target: Tensor, weight: Tensor | None,
    lse: Tensor, rest: Tensor, need: list[bool], ignore_index: int, label_smoothing: float,
    z_loss: float, softcap: float | None, logit_scale: float, chunk_bytes: int | None, static: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dW, db) of sum(loss * g), g [M]; [0] where absent."""
    settings = Settings(ignore_index, label_smoothing, z_loss, softcap, logit_scale)
    rows = Rows(g, lse, rest)
    grads = linear_cross_entropy_bwd(
        g, x, W, b, target, weight, rows, need, settings, chunk_bytes, static
    )
    dx, dW, db = (x.new_empty(0) if t is None else t for t in grads)
    return dx, dW, db


@head_loss_backward.register_fake
def _(g, x, W, b, target, weight, lse, rest, need, *settings):
    return tuple(
        x.new_empty(0) if t is None or not n else t.new_empty(t.shape, dtype=grad_dtype(i, t))
        for i, (t, n) in enumerate(zip((x, W, b), need, strict=True))
    )


def _setup_context(ctx, inputs, output):
    x, W, b, target, weight, scale, need, *settings, per_token = inputs
    _, lse, rest, *grads = output
    ctx.need, ctx.settings, ctx.handed_out = need, settings, False
    ctx.dtypes = [None if t is None else t.dtype for t in (x, W, b)]
    # the gradients are outputs to autograd; none will ever flow into them
    ctx.set_materialize_grads(False)
    scale = scale if x.dtype == torch.float16 else None
    ctx.save_for_backward(*((x, W, b, target, weight, lse, rest) if per_token else (scale, *grads)))


@once_differentiable
def _backward(ctx, g, *_):
    if g is None:
        return (None,) * 15
    if g.ndim:
        *arguments, lse, rest = ctx.saved_tensors
        grads = head_loss_backward(g, *arguments, lse, rest, ctx.need, *ctx.settings)
        grads = cast_to_inputs(ctx, grads)
    else:
        grads = hand_out(ctx, "linear_cross_entropy", g)
    return *grads, *(None,) * 12


head_loss.register_autograd(_backward, setup_context=_setup_context)
