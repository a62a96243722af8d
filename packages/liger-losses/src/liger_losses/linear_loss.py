"""Any loss that is a function of a linear head's per-token statistics, in three matrix products.

    loss = sum_n function(statistics of x_n W^T + b, ...)

A chunk's logits live in one buffer. Their statistics are handed to the function, torch's autograd
gives the gradients with respect to these few numbers, and the row kernel of `row_stats` turns them
and the logits into dlogits in place, from which two more products make dx and a summand of dW. So
the loss is written as for statistics that are simply there, and knows nothing of chunks.

    x [N, ..., H]; W [V, H]; b [V] or none; target [N, ...]
    N tokens or groups of tokens, H hidden size, V vocabulary, C rows of a chunk
    memory beside the inputs: C V + M H + V H elements for M tokens, without dx and dW where frozen

Source: derivatives in `row_stats`; forming gradients in the forward: arXiv:2410.10989.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from liger_core.autograd import autocast, once_differentiable
from torch import Tensor

from .arguments import check_head, check_range, check_target
from .chunk_loop import Chunks
from .handed_out import hand_out
from .linear_log_probs import linear_log_probs
from .log_probs import wanted
from .loss_runs import Formed, loss_of_runs, mapped, runs_of, sum_of_counted
from .row_stats import Logits

__all__ = ["linear_loss"]


def linear_loss(
    function: Callable[..., tuple[Tensor, Any]],
    input: Tensor, linear_weight: Tensor, target: Tensor, *extras: Tensor,
    linear_bias: Tensor | None = None, statistics: Sequence[str] = (), ignore_index: int = -100,
    softcap: float | None = None, logit_scale: float = 1.0, chunk_bytes: int | None = None,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Sum of the losses that `function` makes of the statistics of input @ linear_weight.T +
    linear_bias, without logits.

        losses, aux = function(stats, *extras)

    in plain PyTorch, where `stats` is a `LogProbs` whose fields require a gradient.

    - A target [N] holds tokens. `function` gets some n of them at a time: fields [n], extras [n,
      ...]. Tokens that do not count are mostly left out; where they are not, their statistics are
      0, and their losses are dropped.
    - A target [N, ...] holds groups of tokens that stay together, say sequences or pairs of them.
      `function` gets some n whole groups: fields [n, ...], extras [n, ...], with zeros for the
      statistics of tokens that do not count; it has to leave them out.

    Args:
        function: returns losses [n], fp32, whose sum is the loss, so divided by whatever it is a
            mean over, and `aux`: a tensor, tuple or dict of tensors [n, ...] to be returned, or ().
        input: hidden states x, [N, ..., H]; float16, bfloat16, float32 or float64.
        linear_weight: W, [V, H], in the dtype of x; under autocast both are cast as by a linear
            layer.
        target: class indices, [N, ...], int64 or int32.
        extras: tensors [N, ...] that `function` needs besides; no gradient flows into them, nor
            into other tensors that it uses.
        linear_bias: [V] or None.
        statistics, softcap, logit_scale: as in `log_probs`.
        ignore_index: targets that do not count, such as prompts and padding; where more than one in
            64 is such, their tokens are left out of every product.
        chunk_bytes: bytes of a chunk's logits; by default as in `linear_cross_entropy`, and for a
            group up to 1 GiB. Where a group needs more, and under torch.compile, the result is that
            of `linear_log_probs`: four products.

    Returns:
        (loss, aux): the loss 0-d, fp32 (fp64 for float64), and what `function` returned as aux
        for all of N, without gradient; 0 for tokens that do not count.

    Memory of forward and backward beside the inputs: C V + M H + V H elements for C rows a chunk,
    what is frozen left out. One early synchronisation tells which tokens count; none under
    CUDA-graph capture and torch.compile, where every token is computed.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; an unknown statistic.
        TypeError: dtypes that do not fit.
        RuntimeError: a second backward of the three-product form.

    Source: derivatives in `row_stats`.
    """
    name = "linear_loss"
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_head(name, input, linear_weight, target, linear_bias)
    check_target(name, target, softcap, logit_scale, input.device)
    check_range(name, target, len(linear_weight), ignore_index)
    if target.ndim == 0:
        raise ValueError(f"{name}: target must have a dimension of tokens or groups")
    for t in extras:
        if t.shape[:1] != target.shape[:1] or t.device != input.device:
            raise ValueError(
                f"{name}: extras {tuple(t.shape)} on {t.device} must begin with the "
                f"{target.shape[0]} of target {tuple(target.shape)} on {input.device}"
            )
    logits = Logits(ignore_index, softcap, float(logit_scale))
    parts, want = [t.detach() for t in extras], wanted(name, statistics)
    x, compiling = input.reshape(-1, input.shape[-1]), torch.compiler.is_compiling()
    runs = None if compiling else runs_of(x, linear_weight, target, ignore_index, chunk_bytes)
    if runs is None:
        stats = linear_log_probs(
            input, linear_weight, target, linear_bias=linear_bias, statistics=statistics,
            chunk_bytes=chunk_bytes, **logits._asdict(),
        )  # fmt: skip
        losses, aux = function(stats, *parts)
        return sum_of_counted(losses, target, ignore_index), mapped(torch.Tensor.detach, aux)

    kept: list[Any] = []
    # inside of the Function nothing records, whatever the mode around it
    recording = torch.is_grad_enabled()

    def form(x: Tensor, W: Tensor, b: Tensor | None, need: Sequence[bool]) -> Formed:
        labels, counting, cuts = target.reshape(-1), runs.counting, runs.tokens
        chunks = Chunks(x, W, b, labels, ignore_index, chunk_bytes, True, counting, cuts)
        need = [recording and n for n in need]
        formed = loss_of_runs(function, chunks, runs, target, parts, want, logits, need)
        kept.append(formed.aux)
        return formed

    return LinearLossFunction.apply(x, linear_weight, linear_bias, form), kept[0]


class LinearLossFunction(torch.autograd.Function):
    """The loss of x, W and b; `form` makes it and its gradients, in the forward."""

    @staticmethod
    def forward(ctx, x, W, b, form):
        ctx.need, ctx.handed_out = ctx.needs_input_grad[:3], False
        ctx.dtypes = [None if t is None else t.dtype for t in (x, W, b)]
        formed = form(x, W, b, ctx.need)
        scale = None if formed.scale is None else formed.scale.reciprocal()
        ctx.save_for_backward(scale, *formed.grads)
        return formed.loss

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return *hand_out(ctx, "linear_loss", g), None
