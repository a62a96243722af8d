"""The divergence of two linear heads, or of one and listed probabilities, as an operator of torch:
what eager mode and torch.compile share.

The operator returns the gradients beside the loss, since its chunk loop forms both at once. Its
backward multiplies them by the upstream gradient; that of per-token losses, whose upstream gradient
the forward cannot know, runs the loop again. Nothing here writes an argument.
"""

from collections.abc import Callable

import torch
from liger_core.autograd import once_differentiable
from torch import Tensor

from .chunk_loop import Grads
from .cosine_rows import cosine_fwd
from .divergence_kernels import Divergence, divergence_fwd
from .divergence_loop import Teacher, linear_rows
from .handed_out import NAMESPACE, cast_to_inputs, fake_grads, hand_out
from .head_products import whole_rows
from .top_k_divergence import top_k_fwd

__all__ = ["head_divergence", "head_divergence_backward"]


def _row_function(
    tx: Tensor, tW: Tensor | None, tb: Tensor | None, ids: Tensor | None, how: Divergence
) -> Callable[..., Tensor]:
    """The losses of rows of logits and, in place, their gradient. `tx` are hidden states of the
    teacher, or without `tW` its log-probabilities of the classes `ids`.
    """
    if ids is not None:
        return lambda where, logits, labels, dx, g: top_k_fwd(
            logits, tx[where], ids[where], labels, how, dx, g
        )
    assert tW is not None
    teacher = Teacher(tx, tW, tb)
    if how.kind == "cosine":
        return lambda where, logits, labels, dx, g: cosine_fwd(
            logits, teacher(where, len(logits)), labels, how.ignore_index, dx, g
        )

    def divergence(where, logits, labels, dx, g):
        x, p = logits, teacher(where, len(logits))
        if x.stride(0) == p.stride(0):
            # classes of probability 0 in both rows change nothing
            x, p = whole_rows(x, float("-inf")), whole_rows(p, float("-inf"))
        return divergence_fwd(x, p, labels, how, None if dx is None else x, g)[0]

    return divergence


def _loop(
    g: Tensor | None, x: Tensor, W: Tensor, b: Tensor | None, tx: Tensor, tW: Tensor | None,
    tb: Tensor | None, ids: Tensor | None, labels: Tensor | None, need: list[bool], kind: str,
    beta: float, temperature: float, ignore_index: int, chunk_bytes: int | None, static: bool,
) -> tuple[Tensor, Grads]:  # fmt: skip
    how = Divergence(kind, beta, True, temperature, True, ignore_index)
    acc = torch.promote_types(torch.promote_types(x.dtype, tx.dtype), torch.float32)
    row = _row_function(tx, tW, tb, ids, how)
    return linear_rows(x, W, b, labels, row, g, need, acc, ignore_index, chunk_bytes, static)


@torch.library.custom_op(f"{NAMESPACE}::head_divergence", mutates_args=())
def head_divergence(
    x: Tensor, W: Tensor, b: Tensor | None, tx: Tensor, tW: Tensor | None, tb: Tensor | None,
    ids: Tensor | None, labels: Tensor | None, scale: Tensor, need: list[bool], kind: str,
    beta: float, temperature: float, ignore_index: int, chunk_bytes: int | None, static: bool,
    per_token: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, dx, dW, db): losses [M] if `per_token`, else sum(loss) * scale and its gradients; [0]
    where absent.
    """
    # fp16 gradients of a mean underflow: they stay gradients of the sum until the backward knows
    # the loss scale
    g = torch.ones_like(scale) if x.dtype == torch.float16 else scale
    loss, grads = _loop(
        None if per_token else g, x, W, b, tx, tW, tb, ids, labels, need, kind, beta,
        temperature, ignore_index, chunk_bytes, static,
    )  # fmt: skip
    dx, dW, db = (x.new_empty(0) if t is None else t for t in grads)
    return loss if per_token else loss.sum() * scale, dx, dW, db


@head_divergence.register_fake
def _(x, W, b, tx, tW, tb, ids, labels, scale, need, *settings):
    per_token = settings[-1]
    loss = x.new_empty(x.shape[:1] if per_token else (), dtype=scale.dtype)
    return loss, *fake_grads((x, W, b), [n and not per_token for n in need])


@torch.library.custom_op(f"{NAMESPACE}::head_divergence_backward", mutates_args=())
def head_divergence_backward(
    g: Tensor, x: Tensor, W: Tensor, b: Tensor | None, tx: Tensor, tW: Tensor | None,
    tb: Tensor | None, ids: Tensor | None, labels: Tensor | None, need: list[bool], kind: str,
    beta: float, temperature: float, ignore_index: int, chunk_bytes: int | None, static: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dW, db) of sum(loss * g), g [M]; [0] where absent."""
    _, grads = _loop(
        g, x, W, b, tx, tW, tb, ids, labels, need, kind, beta, temperature, ignore_index,
        chunk_bytes, static,
    )  # fmt: skip
    dx, dW, db = (x.new_empty(0) if t is None else t for t in grads)
    return dx, dW, db


@head_divergence_backward.register_fake
def _(g, x, W, b, tx, tW, tb, ids, labels, need, *settings):
    return fake_grads((x, W, b), need)


def _divergence_context(ctx, inputs, output):
    *tensors, scale, need, kind, beta, temperature, ignore_index, chunk, static, per_token = inputs
    ctx.need, ctx.handed_out = need, False
    ctx.settings = kind, beta, temperature, ignore_index, chunk, static
    ctx.dtypes = [None if t is None else t.dtype for t in tensors[:3]]
    # the gradients are outputs to autograd; none will ever flow into them
    ctx.set_materialize_grads(False)
    scale = scale if tensors[0].dtype == torch.float16 else None
    ctx.save_for_backward(*(tensors if per_token else (scale, *output[1:])))


@once_differentiable
def _divergence_backward(ctx, g, *_):
    if g is None:
        return (None,) * 17
    if g.ndim:
        grads = head_divergence_backward(g, *ctx.saved_tensors, ctx.need, *ctx.settings)
        grads = cast_to_inputs(ctx, grads)
    else:
        grads = hand_out(ctx, "linear divergence", g)
    return *grads, *(None,) * 14


head_divergence.register_autograd(_divergence_backward, setup_context=_divergence_context)
