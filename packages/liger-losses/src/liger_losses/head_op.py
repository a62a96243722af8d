"""The loss of a linear head as an operator of torch: what eager mode and torch.compile share.

The operator returns the gradients beside the loss, since its chunk loop forms both at once. Its
backward multiplies them by the upstream gradient; that of per-token losses, whose upstream gradient
the forward cannot know, runs the loop again. Nothing here writes an argument.
"""

import torch
from liger_core.autograd import once_differentiable
from torch import Tensor

from .chunk_loop import linear_cross_entropy_bwd, linear_cross_entropy_fwd
from .handed_out import NAMESPACE, cast_to_inputs, fake_grads, hand_out
from .row_loss import Rows, Settings, empty_rows
from .tokens import half_factor, weighted

__all__ = ["head_loss"]


@torch.library.custom_op(f"{NAMESPACE}::head_loss", mutates_args=())
def head_loss(
    x: Tensor, W: Tensor, b: Tensor | None, target: Tensor, weight: Tensor | None,
    token_weight: Tensor | None, scale: Tensor, need: list[bool], ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float | None, logit_scale: float,
    chunk_bytes: int | None, static: bool, per_token: bool, metrics: bool, by_probability: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, lse, rest, log_prob, argmax, dx, dW, db): losses [M] if `per_token`, else sum(loss *
    weight of its token) * scale and its gradients; [0] where absent.
    """
    settings = Settings(ignore_index, label_smoothing, z_loss, softcap, logit_scale)
    half = x.dtype == torch.float16
    g = half_factor(scale, token_weight, by_probability) if half else scale
    g = weighted(g, token_weight)
    rows, grads = linear_cross_entropy_fwd(
        x, W, b, target, weight, None if per_token else g, need, settings, chunk_bytes, static,
        metrics, by_probability,
    )  # fmt: skip
    loss, lse, rest, *more = rows
    if not per_token:
        loss = weighted(loss, token_weight, rows.log_prob if by_probability else None).sum() * scale
    log_prob, argmax, dx, dW, db = (x.new_empty(0) if t is None else t for t in (*more, *grads))
    return loss, lse, rest, log_prob, argmax, dx, dW, db


@head_loss.register_fake
def _(x, W, b, target, weight, token_weight, scale, need, *settings):
    *_, per_token, metrics, by_probability = settings
    loss, lse, rest, *more = empty_rows(x.shape[0], x, metrics, by_probability)
    loss = loss if per_token else loss.new_empty(())
    need = [n and not per_token for n in need]
    log_prob, argmax = (x.new_empty(0) if t is None else t for t in more)
    return loss, lse, rest, log_prob, argmax, *fake_grads((x, W, b), need)


@torch.library.custom_op(f"{NAMESPACE}::head_loss_backward", mutates_args=())
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
    return fake_grads((x, W, b), need)


def _loss_context(ctx, inputs, output):
    x, W, b, target, weight, token_weight, scale, need, *settings, per_token, _, by_prob = inputs
    _, lse, rest, _, _, *grads = output
    ctx.need, ctx.settings, ctx.handed_out = need, settings, False
    ctx.others = (None,) * (len(inputs) - 3)
    ctx.dtypes = [None if t is None else t.dtype for t in (x, W, b)]
    # statistics and gradients are outputs to autograd; none will ever flow into them
    ctx.set_materialize_grads(False)
    half = x.dtype == torch.float16
    scale = scale / half_factor(scale, token_weight, by_prob) if half else None
    ctx.save_for_backward(*((x, W, b, target, weight, lse, rest) if per_token else (scale, *grads)))


@once_differentiable
def _loss_backward(ctx, g, *_):
    if g is None:
        return None, None, None, *ctx.others
    if g.ndim:
        *arguments, lse, rest = ctx.saved_tensors
        grads = head_loss_backward(g, *arguments, lse, rest, ctx.need, *ctx.settings)
        grads = cast_to_inputs(ctx, grads)
    else:
        grads = hand_out(ctx, "linear_cross_entropy", g)
    return *grads, *ctx.others


head_loss.register_autograd(_loss_backward, setup_context=_loss_context)
