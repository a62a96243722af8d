"""Cross entropy of a linear head, without its logits.

    loss = cross_entropy(x W^T + b, target)

Rows are taken in chunks. A chunk's logits live in one buffer of C rows: a matrix product fills it,
the row kernel of `row_loss` turns it into its own gradient in place, and two more products turn
that into dx and into a summand of dW: three products in all, C x V logits in memory. Tokens to be
ignored are left out before the first product, where they are more than one in 64.

The upstream gradient of a scalar loss multiplies dx and dW in the backward, at no cost when it is
1. With `reduction="none"` it is known only then: the forward keeps two numbers a row, the backward
makes the logits of each chunk again.

    x [M, H]; W [V, H]; b [V] or none; target [M]
    M tokens, H hidden size, V vocabulary, C rows of a chunk
    memory beside the inputs: C V + M H + V H elements, without dx and dW where they are frozen

Source: the formula of torch.nn.functional.linear_cross_entropy; forming gradients in the forward:
Liger Kernel, arXiv:2410.10989.
"""

from typing import Any

import torch
from liger_core.autograd import autocast
from torch import Tensor

from .arguments import check_head, check_loss, is_static
from .cross_entropy import cross_entropy_ref
from .head_op import head_loss
from .row_loss import Settings
from .tokens import CrossEntropyMetrics, Tokens, metrics_of, tokens_of

__all__ = [
    "LinearCrossEntropyLoss", "linear_cross_entropy", "linear_cross_entropy_ref",
    "linear_cross_entropy_with_metrics",
]  # fmt: skip


def linear_cross_entropy_ref(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    **options,
) -> Tensor:
    # how the work is cut does not change its result
    options = {
        name: value for name, value in options.items() if name not in ("chunk_bytes", "options")
    }
    logits = torch.nn.functional.linear(input, linear_weight, linear_bias)
    options["ignore_index"] = (
        -100 if options.get("ignore_index") is None else options["ignore_index"]
    )
    return cross_entropy_ref(logits, target, **options)


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    weight: Tensor | None = None, reduction: str = "mean", ignore_index: int | None = None,
    label_smoothing: float = 0.0, options: Any = None, z_loss: float = 0.0,
    softcap: float | None = None, logit_scale: float = 1.0,
    token_weight: Tensor | str | None = None, normalizer: float | Tensor | None = None,
    shift_labels: bool = False, chunk_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Cross entropy of input @ linear_weight.T + linear_bias, as
    `torch.nn.functional.linear_cross_entropy`, without logits.

    Args:
        input: hidden states x, [..., H]; float16, bfloat16, float32 or float64.
        linear_weight: W, [V, H], in the dtype of x; under autocast both are cast as by a linear
            layer.
        target: class indices, [...], int64 or int32.
        linear_bias: [V] or None.
        weight: [V], a factor for each class, or None.
        reduction: "mean", which divides by the number, or the sum of the weights, of the targets
            that count, "sum", or "none". "none" keeps nothing but two numbers a token and makes the
            logits again in the backward: four products instead of three.
        ignore_index: targets that do not count, -100 by default; where more than one in 64 is
            such, their tokens are left out of every product.
        label_smoothing, z_loss, softcap, logit_scale: as in `cross_entropy`.
        options: `torch.nn.LinearCrossEntropyOptions` or None; of its fields an integer
            `batch_chunk_size` is used, the rows of a chunk.
        token_weight, normalizer: as in `cross_entropy`.
        shift_labels: as in `cross_entropy`; the last dimension of `target`, [..., T], is the
            sequence. Hidden states are not copied.
        chunk_bytes: bytes of a chunk's logits. By default 2048 rows on a GPU, more where V is small
            or more than 16 chunks would be needed, and 8 MiB on a CPU. Less saves memory; below
            2048 rows the products slow down, and dW, which is summed over chunks in the dtype of W
            (fp32 for float16), is rounded more often.

    Returns:
        fp32 (fp64 for float64), a scalar or the shape of `target`. 0 where no token counts; NaN for
        a target out of range.

    Peak memory of forward and backward beside the inputs: C V + M H + V H elements for C rows a
    chunk; what is frozen is left out. Reading which tokens count takes one early synchronisation
    with the device; under CUDA-graph capture and torch.compile there is none, and every token is
    computed.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; weights that require a gradient;
            when debugging (`liger_core.debug`) a target out of range.
        TypeError: dtypes that do not fit; probabilities as targets.
        RuntimeError: a second backward of "mean" or "sum", whose gradients are formed in the
            forward.

    Source: torch.nn.functional.linear_cross_entropy.
    """
    return _linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight, reduction=reduction,
        ignore_index=ignore_index, label_smoothing=label_smoothing, options=options, z_loss=z_loss,
        softcap=softcap, logit_scale=logit_scale, token_weight=token_weight,
        normalizer=normalizer, shift_labels=shift_labels, chunk_bytes=chunk_bytes,
    )[0]  # fmt: skip


def linear_cross_entropy_with_metrics(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any
) -> CrossEntropyMetrics:
    """`linear_cross_entropy`, and what training logs of it, from the same logits.

    Args:
        input, linear_weight, target: as in `linear_cross_entropy`.
        options: its keyword arguments.

    Returns:
        `CrossEntropyMetrics`, of which `loss` alone has a gradient: the loss and the z-loss in it,
        log-probability of the target, lse and argmax of each token, the accuracy and the number of
        the tokens that count.

    Peak memory, errors: as `linear_cross_entropy`.
    """
    found = _linear_cross_entropy(input, linear_weight, target, metrics=True, **options)
    return metrics_of(*found)


def _linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    metrics: bool = False, weight: Tensor | None = None, reduction: str = "mean",
    ignore_index: int | None = None, label_smoothing: float = 0.0, options: Any = None,
    z_loss: float = 0.0, softcap: float | None = None, logit_scale: float = 1.0,
    token_weight: Tensor | str | None = None, normalizer: float | Tensor | None = None,
    shift_labels: bool = False, chunk_bytes: int | None = None,
) -> tuple[Tensor, Tokens, Settings, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss, and what `metrics_of` makes its metrics of."""
    ignore_index = -100 if ignore_index is None else ignore_index
    settings = Settings(
        ignore_index, float(label_smoothing), float(z_loss), softcap, float(logit_scale)
    )
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    name = "linear_cross_entropy"
    check_head(name, input, linear_weight, target, linear_bias)
    V, H = linear_weight.shape
    check_loss(name, target, weight, reduction, normalizer, settings, V, input.device)
    if chunk_bytes is None and isinstance(getattr(options, "batch_chunk_size", None), int):
        chunk_bytes = options.batch_chunk_size * V * input.element_size()
    weight = None if weight is None else weight.contiguous()
    dtype = torch.promote_types(input.dtype, torch.float32)
    tokens = tokens_of(
        name, target, weight, token_weight, reduction, normalizer, shift_labels, ignore_index, dtype
    )
    x, per_token = input.reshape(-1, H), reduction == "none"
    grad = torch.is_grad_enabled()
    need = [grad and t is not None and t.requires_grad for t in (x, linear_weight, linear_bias)]
    loss, lse, _, log_prob, argmax, *_ = head_loss(
        x, linear_weight, linear_bias, tokens.target, weight, tokens.weight, tokens.scale, need,
        *settings, chunk_bytes, is_static(x), per_token, metrics, tokens.by_probability,
    )  # fmt: skip
    loss = tokens.reduced(loss, log_prob) if per_token else loss
    return loss, tokens, settings, lse, log_prob, argmax


class LinearCrossEntropyLoss(torch.nn.Module):
    """`linear_cross_entropy` with a head of its own: `weight` [V, H] and, if asked for, `bias` [V].

    The constructor and parameters follow `torch.nn.LinearCrossEntropyLoss`: `linear.weight`,
    `linear.bias`.
    """

    weight: Tensor | None

    def __init__(
        self, in_features: int, num_classes: int, *, bias=False, device=None, dtype=None,
        reduction="mean", weight=None, ignore_index=None, label_smoothing=0.0, options=None,
        z_loss=0.0, softcap=None, logit_scale=1.0, shift_labels=False, chunk_bytes=None,
    ):  # fmt: skip
        super().__init__()
        self.linear = torch.nn.Linear(
            in_features, num_classes, bias=bias, device=device, dtype=dtype
        )
        self.register_buffer("weight", weight)
        self.settings = {
            "reduction": reduction, "ignore_index": ignore_index,
            "label_smoothing": label_smoothing, "options": options, "z_loss": z_loss,
            "softcap": softcap, "logit_scale": logit_scale, "shift_labels": shift_labels,
            "chunk_bytes": chunk_bytes,
        }  # fmt: skip

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None,
        token_weight: Tensor | str | None = None,
    ) -> Tensor:  # fmt: skip
        return linear_cross_entropy(
            input, self.linear.weight, target, linear_bias=self.linear.bias, weight=self.weight,
            normalizer=normalizer, token_weight=token_weight, **self.settings,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())
