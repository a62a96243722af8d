"""The cross entropy of rows as a function of autograd: with the gradient formed in the backward, or
in the forward over the logits.
"""

import torch
from liger_core.autograd import once_differentiable
from liger_core.kernels import scale_

from .row_loss import Rows, row_loss_bwd, row_loss_fwd
from .tokens import half_factor, weighted

__all__ = ["CrossEntropyFunction", "InplaceCrossEntropyFunction"]


def _shown(ctx, loss, rows):
    """(loss, lse, log_prob, argmax), [0] where not asked for; the loss alone is differentiable."""
    more = [rows.lse.new_empty(0) if t is None else t for t in (rows.log_prob, rows.argmax)]
    ctx.mark_non_differentiable(rows.lse, *more)
    # no zeros for what has no gradient
    ctx.set_materialize_grads(False)
    return loss, rows.lse, *more


class CrossEntropyFunction(torch.autograd.Function):
    """Losses [M] of rows; their weights and the reduction are left to torch."""

    @staticmethod
    def forward(ctx, x, target, weight, settings, metrics, by_probability):
        rows = row_loss_fwd(
            x, target, weight, settings, metrics=metrics, by_probability=by_probability
        )
        ctx.save_for_backward(x, target, weight, rows.lse, rows.rest)
        ctx.settings = settings
        return _shown(ctx, rows.loss, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, g, *_):
        if g is None:
            return None, None, None, None, None, None
        x, target, weight, lse, rest = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        row_loss_bwd(x, target, weight, ctx.settings, Rows(g, lse, rest), dx, g)
        return dx, None, None, None, None, None


class InplaceCrossEntropyFunction(torch.autograd.Function):
    """Scalar loss sum(loss * weight of its token) * scale; the logits become their gradient in the
    forward.
    """

    @staticmethod
    def forward(ctx, x, tokens, weight, settings, metrics):
        factor, half = tokens.scale, x.dtype == torch.float16
        if half:
            factor = half_factor(factor, tokens.weight, tokens.by_probability)
        g = weighted(factor, tokens.weight)
        rows = row_loss_fwd(
            x, tokens.target, weight, settings, x, g, metrics, tokens.by_probability
        )
        ctx.save_for_backward(tokens.scale / factor if half else None)
        torch.autograd.graph.increment_version(x)
        ctx.dx = x.detach()
        return _shown(ctx, tokens.reduced(rows.loss, rows.log_prob), rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, g, *_):
        if g is None:
            return None, None, None, None, None
        if ctx.dx is None:
            raise RuntimeError(
                "cross_entropy(inplace=True): the gradient was handed out by the first backward"
            )
        dx, ctx.dx = ctx.dx, None
        (scale,) = ctx.saved_tensors
        g = g if scale is None else g * scale
        return scale_(dx, g), None, None, None, None
