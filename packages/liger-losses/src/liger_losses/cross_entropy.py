"""Cross entropy of logits that exist; the loss of a row and its gradient are those of `row_loss`.

The forward keeps the logits and two numbers a row; the gradient is formed in the backward, with the
upstream gradient in it, so any reduction and any loss scale cost one reading and one writing of the
logits. With `inplace=True` the logits are
handed over: the forward overwrites them with their gradient, in one reading and one writing in all.
"""

from typing import Any

import torch
from torch import Tensor

from .arguments import check_loss
from .cross_entropy_function import CrossEntropyFunction, InplaceCrossEntropyFunction
from .row_loss import Settings
from .tokens import CrossEntropyMetrics, Tokens, metrics_of, shifted, tokens_of

__all__ = [
    "CrossEntropyLoss", "cross_entropy", "cross_entropy_ref", "cross_entropy_with_metrics",
]  # fmt: skip


def cross_entropy_ref(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, z_loss: float = 0.0,
    softcap: float | None = None, logit_scale: float = 1.0, token_weight: Any = None,
    normalizer: float | Tensor | None = None, shift_labels: bool = False,
) -> Tensor:  # fmt: skip
    given = isinstance(token_weight, Tensor)
    if shift_labels:
        target = shifted(target, ignore_index)
        token_weight = shifted(token_weight, 0.0) if given else token_weight
    z = input.to(torch.promote_types(input.dtype, torch.float32)) * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    weight, valid = None if weight is None else weight.to(z.dtype), target != ignore_index
    options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": "none"}
    loss = torch.nn.functional.cross_entropy(
        z, target, weight, label_smoothing=label_smoothing, **options
    )
    loss = loss + torch.where(valid, z_loss * z.logsumexp(dim=-1).square(), 0.0)
    count = valid if weight is None else valid * weight[target.where(valid, 0)]
    if given:
        loss, count = loss * token_weight, count * token_weight
    elif token_weight:
        loss = loss * torch.exp(-torch.nn.functional.cross_entropy(z, target, **options)).detach()
    if reduction == "mean":
        some = valid if token_weight is None else valid & (token_weight != 0)
        total = torch.where(some.any(), count.sum(), 1) if normalizer is None else normalizer
        return loss.sum() / total
    return loss.sum() if reduction == "sum" else loss


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, z_loss: float = 0.0,
    softcap: float | None = None, logit_scale: float = 1.0,
    token_weight: Tensor | str | None = None, normalizer: float | Tensor | None = None,
    shift_labels: bool = False, inplace: bool = False,
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
        reduction: "none", "sum", or "mean", which divides by the number, or the sum of the weights,
            of the targets that count; 0 where none does, or all have a `token_weight` of 0.
        label_smoothing: s in [0, 1].
        z_loss: factor of lse^2.
        softcap: bound of the logits, or None.
        logit_scale: factor of the logits, before the softcap.
        token_weight: what multiplies the loss of each target, a tensor in its shape without
            gradient; "mean" divides by the sum of these weights, times those of classes. Or
            "probability": that of the target, a constant that "mean" does not divide by (dynamic
            fine-tuning). None for 1.
        normalizer: what "mean" divides by instead, e.g. the number of tokens in all accumulated
            batches; no gradient.
        shift_labels: `target` holds the labels of the input's own positions, along its last
            dimension, and position t predicts target[..., t + 1]; the last one does not count. A
            `token_weight` goes with its label. Logits [B, T, V] of a language model are passed as
            logits.transpose(1, 2), which copies nothing.
        inplace: hand `input` over: where it is contiguous its memory becomes its gradient, already
            in the forward, and is what later reads of it see. For "mean" and "sum"; a graph that
            saved `input` before, and a second backward, raise. An upstream gradient other than 1
            rounds the gradient once more.

    Returns:
        fp32 (fp64 for float64 logits), a scalar or the shape of `target`. A target out of range
        gives NaN.

    Peak memory of forward and backward beside M rows of logits of b bytes an element: M V b + 16 M,
    12 M with `inplace`.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; weights that require a gradient;
            `inplace` on a leaf or with "none"; when debugging (`liger_core.debug`) a target out of
            range.
        TypeError: dtypes that do not fit; probabilities as targets.

    Source: torch.nn.functional.cross_entropy; z-loss: arXiv:2204.02311; dynamic fine-tuning:
    arXiv:2508.05629.
    """
    return _cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap, logit_scale=logit_scale,
        token_weight=token_weight, normalizer=normalizer, shift_labels=shift_labels,
        inplace=inplace,
    )[0]  # fmt: skip


def cross_entropy_with_metrics(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> CrossEntropyMetrics:
    """`cross_entropy`, and what training logs of it, from the same reading of the logits.

    Args:
        input, target, weight: as in `cross_entropy`.
        options: its keyword arguments.

    Returns:
        `CrossEntropyMetrics`, of which `loss` alone has a gradient: the loss and the z-loss in it,
        log-probability of the target, lse and argmax of each token, the accuracy and the number of
        the tokens that count. The device is not waited for.

    Peak memory: that of `cross_entropy` and 12 bytes a row more.

    Raises:
        ValueError, TypeError: as `cross_entropy`.
    """
    return metrics_of(*_cross_entropy(input, target, weight, metrics=True, **options))


def _cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, *, metrics: bool = False,
    ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
    z_loss: float = 0.0, softcap: float | None = None, logit_scale: float = 1.0,
    token_weight: Tensor | str | None = None, normalizer: float | Tensor | None = None,
    shift_labels: bool = False, inplace: bool = False,
) -> tuple[Tensor, Tokens, Settings, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss, and what `metrics_of` makes its metrics of."""
    name = "cross_entropy"
    settings = Settings(
        ignore_index, float(label_smoothing), float(z_loss), softcap, float(logit_scale)
    )
    V = input.shape[min(input.ndim - 1, 1)] if input.ndim else 0
    check_loss(name, target, weight, reduction, normalizer, settings, V, input.device)
    if input.ndim < 1 or target.shape != input.shape[:1] * (input.ndim > 1) + input.shape[2:]:
        raise ValueError(
            f"{name}: input {tuple(input.shape)} and target {tuple(target.shape)} do not fit"
        )
    if not input.is_floating_point():
        raise TypeError(f"{name}: input {input.dtype} must be floating point")
    weight = None if weight is None else weight.contiguous()
    dtype = torch.promote_types(input.dtype, torch.float32)
    tokens = tokens_of(
        name, target, weight, token_weight, reduction, normalizer, shift_labels, ignore_index, dtype
    )
    x = input.movedim(1, -1).reshape(-1, V) if input.ndim > 1 else input[None]
    if inplace:
        _check_inplace(input, reduction)
        if (
            input.requires_grad
            and torch.is_grad_enabled()
            and x.is_contiguous()
            and not torch.compiler.is_compiling()
        ):
            loss, *found = InplaceCrossEntropyFunction.apply(x, tokens, weight, settings, metrics)
            return loss, tokens, settings, *found
    x = x if x.stride(-1) == 1 else x.contiguous()
    losses, *found = CrossEntropyFunction.apply(
        x, tokens.target, weight, settings, metrics, tokens.by_probability
    )
    return tokens.reduced(losses, found[1]), tokens, settings, *found


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
        *, z_loss=0.0, softcap=None, logit_scale=1.0, shift_labels=False, inplace=False,
    ):  # fmt: skip
        super().__init__(
            weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
        self.options = {
            "z_loss": z_loss,
            "softcap": softcap,
            "logit_scale": logit_scale,
            "shift_labels": shift_labels,
            "inplace": inplace,
        }

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None,
        token_weight: Tensor | str | None = None,
    ) -> Tensor:  # fmt: skip
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing, normalizer=normalizer, token_weight=token_weight,
            **self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
