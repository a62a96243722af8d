"""Cross entropy of logits that exist; the loss of a row and its gradient are those of `row_loss`.

The forward keeps the logits and two numbers a row; the gradient is formed in the backward, with the
upstream gradient in it, so any reduction and any loss scale cost one reading and one writing of the
logits. With `inplace=True` the logits are
handed over: the forward overwrites them with their gradient, in one reading and one writing in all.
"""

import torch
from liger_core.kernels import scale_
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import check_loss, mean_scale
from .row_loss import Rows, Settings, row_loss_bwd, row_loss_fwd

__all__ = ["CrossEntropyLoss", "cross_entropy", "cross_entropy_ref"]


def cross_entropy_ref(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, z_loss: float = 0.0,
    softcap: float | None = None, logit_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    z = input.to(torch.promote_types(input.dtype, torch.float32)) * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    weight = None if weight is None else weight.to(z.dtype)
    loss = torch.nn.functional.cross_entropy(
        z,
        target,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    valid = target != ignore_index
    loss = loss + torch.where(valid, z_loss * z.logsumexp(dim=-1).square(), 0.0)
    if reduction == "mean":
        count = valid if weight is None else valid * weight[target.where(valid, 0)]
        return loss.sum() / torch.where(valid.any(), count.sum(), 1)
    return loss.sum() if reduction == "sum" else loss


class CrossEntropyFunction(torch.autograd.Function):
    """Per-row losses [M]; the reduction is left to torch."""

    @staticmethod
    def forward(ctx, x, target, weight, settings):
        rows = row_loss_fwd(x, target, weight, settings)
        ctx.save_for_backward(x, target, weight, rows.lse, rows.rest)
        ctx.settings = settings
        return rows.loss

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, target, weight, lse, rest = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        row_loss_bwd(x, target, weight, ctx.settings, Rows(g, lse, rest), dx, g)
        return dx, None, None, None


class InplaceCrossEntropyFunction(torch.autograd.Function):
    """Scalar loss sum(loss) * scale; the logits become their gradient in the forward."""

    @staticmethod
    def forward(ctx, x, target, weight, scale, settings):
        # fp16 gradients of a mean underflow: they stay those of the sum until the backward, which
        # knows the loss scale
        half = x.dtype == torch.float16
        g = torch.ones_like(scale) if half else scale
        rows = row_loss_fwd(x, target, weight, settings, dx=x, g=g)
        ctx.save_for_backward(scale if half else None)
        torch.autograd.graph.increment_version(x)
        ctx.dx = x.detach()
        return rows.loss.sum() * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        if ctx.dx is None:
            raise RuntimeError(
                "cross_entropy(inplace=True): the gradient was handed out by the first backward"
            )
        dx, ctx.dx = ctx.dx, None
        (scale,) = ctx.saved_tensors
        g = g if scale is None else g * scale
        return scale_(dx, g), None, None, None, None


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, z_loss: float = 0.0,
    softcap: float | None = None, logit_scale: float = 1.0,
    inplace: bool = False,
) -> Tensor:  # fmt: skip
    """Cross entropy between logits and class indices, as `torch.nn.functional.cross_entropy`.

    loss = (1 - s) * w_t * (lse - z_t) + s / V * sum_j w_j (lse - z_j) + z_loss * lse^2, with
    z = softcap * tanh(logit_scale * x / softcap), or logit_scale * x, and lse = log(sum_j
    exp(z_j)).

    Args:
        input: logits x, [V], [M, V] or [M, V, d1, ...]; float16, bfloat16, float32 or float64.
        target: class indices, [], [M] or [M, d1, ...], int64 or int32.
        weight: [V], a factor for each class, or None.
        ignore_index: targets that do not count; their logits are not read and get a zero gradient.
        reduction: "none", "sum", or "mean" over the (weights of the) targets that count; 0 where
            none counts.
        label_smoothing: s in [0, 1].
        z_loss: factor of lse^2.
        softcap: bound of the logits, or None.
        logit_scale: factor of the logits, before the softcap.
        inplace: hand `input` over: where it is contiguous its memory becomes its gradient, already
            in the forward, and is what later reads of it see. For "mean" and "sum"; a graph that
            saved `input` before, and a second backward, raise. An upstream gradient other than 1
            rounds the gradient once more.

    Returns:
        fp32 (fp64 for float64 logits), a scalar or the shape of `target`. A target out of range
        gives NaN.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; `inplace` on a leaf or with "none".
        TypeError: dtypes that do not fit; probabilities as targets.

    Source: torch.nn.functional.cross_entropy; z-loss: arXiv:2204.02311.
    """
    settings = Settings(
        ignore_index, float(label_smoothing), float(z_loss), softcap, float(logit_scale)
    )
    check_loss(
        "cross_entropy",
        target,
        weight,
        reduction,
        settings,
        input.shape[min(input.ndim - 1, 1)],
        input.device,
    )
    if input.ndim < 1 or target.shape != input.shape[:1] * (input.ndim > 1) + input.shape[2:]:
        raise ValueError(
            f"cross_entropy: input {tuple(input.shape)} and target {tuple(target.shape)} do not fit"
        )
    if not input.is_floating_point():
        raise TypeError(f"cross_entropy: input {input.dtype} must be floating point")
    V = input.shape[min(input.ndim - 1, 1)]
    x = input.movedim(1, -1).reshape(-1, V) if input.ndim > 1 else input[None]
    flat, weight = target.reshape(-1).contiguous(), None if weight is None else weight.contiguous()
    dtype = torch.promote_types(input.dtype, torch.float32)
    scale = (
        mean_scale(flat, weight, ignore_index, None, dtype)
        if reduction == "mean"
        else torch.ones((), dtype=dtype, device=x.device)
    )
    if inplace:
        _check_inplace(input, reduction)
        if (
            input.requires_grad
            and torch.is_grad_enabled()
            and x.is_contiguous()
            and not torch.compiler.is_compiling()
        ):
            return InplaceCrossEntropyFunction.apply(x, flat, weight, scale, settings)
    x = x if x.stride(-1) == 1 else x.contiguous()
    loss = CrossEntropyFunction.apply(x, flat, weight, settings)
    return loss.reshape(target.shape) if reduction == "none" else loss.sum() * scale


def _check_inplace(input: Tensor, reduction: str) -> None:
    if reduction == "none":
        raise ValueError(
            "cross_entropy: inplace=True forms the gradient in the forward; "
            "reduction must be 'mean' or 'sum'"
        )
    if input.is_leaf and input.requires_grad:
        raise ValueError("cross_entropy: inplace=True cannot take a leaf that requires a gradient")


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` on `cross_entropy`, with its further options."""

    def __init__(
        self, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
        *, z_loss=0.0, softcap=None, logit_scale=1.0, inplace=False,
    ):  # fmt: skip
        super().__init__(
            weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
        self.options = {
            "z_loss": z_loss,
            "softcap": softcap,
            "logit_scale": logit_scale,
            "inplace": inplace,
        }

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing, **self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
