"""The divergence of rows as a function of autograd: with the gradient formed in the forward, or in
the backward.
"""

import torch
from liger_core.autograd import once_differentiable
from liger_core.kernels import as_rows, scale_
from torch import Tensor

from .divergence_kernels import Divergence, divergence_bwd, divergence_fwd

__all__ = ["divergence_rows", "divergence_total"]


class DivergenceFunction(torch.autograd.Function):
    """Losses of rows [M]; the gradient is formed in the backward."""

    @staticmethod
    def forward(ctx, x, p, labels, how):
        loss, stats = divergence_fwd(x, p, labels, how)
        ctx.save_for_backward(x, p, labels, stats)
        ctx.how = how
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, p, labels, stats = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        divergence_bwd(x, p, labels, ctx.how, stats, dx, g)
        return dx, None, None, None


class DivergenceSumFunction(torch.autograd.Function):
    """sum(loss) * scale, scale a 0-d tensor; the gradient is formed in the forward."""

    @staticmethod
    def forward(ctx, x, p, labels, scale, how):
        # fp16 gradients of a mean underflow: they stay those of the sum until the backward, which
        # knows the loss scale
        half = x.dtype == torch.float16
        ctx.dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        g = torch.ones_like(scale) if half else scale
        loss, _ = divergence_fwd(x, p, labels, how, ctx.dx, g)
        ctx.save_for_backward(scale if half else None)
        return loss.sum() * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        if ctx.dx is None:
            raise RuntimeError(
                "divergence: the first backward handed out the gradient, which the forward had "
                "formed; losses of rows form it in each backward"
            )
        dx, ctx.dx = ctx.dx, None
        (scale,) = ctx.saved_tensors
        return scale_(dx, g if scale is None else g * scale), None, None, None, None


def divergence_rows(
    input: Tensor, target: Tensor, labels: Tensor | None, how: Divergence
) -> Tensor:
    """The loss of each row, in the shape of the labels."""
    flat = None if labels is None else labels.reshape(-1).contiguous()
    loss: Tensor = DivergenceFunction.apply(as_rows(input), as_rows(target), flat, how)
    return loss.reshape(input.shape[:-1])


def divergence_total(
    input: Tensor, target: Tensor, labels: Tensor | None, how: Divergence, scale: Tensor
) -> Tensor:
    """sum(loss) * scale."""
    wanted = input.requires_grad and torch.is_grad_enabled()
    if not wanted or torch.compiler.is_compiling():
        return divergence_rows(input, target, labels, how).sum() * scale
    flat = None if labels is None else labels.reshape(-1).contiguous()
    x, p = as_rows(input), as_rows(target)
    loss: Tensor = DivergenceSumFunction.apply(x, p, flat, scale, how)
    return loss
