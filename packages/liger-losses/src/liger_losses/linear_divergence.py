"""Divergences between the logits of two linear heads, without the logits.

    loss = divergence(x W^T + b, of the student;  x' W'^T + b', of the teacher)

Rows are taken in chunks. Two matrix products fill a buffer for the logits of each head, the row
kernel of `divergence_kernels` turns the student's into its gradient in place, and two more products
turn that into dx and into a summand of dW. Tokens to be ignored are left out before the first
product, where they are more than one in 64. The teacher gets no gradient.

The upstream gradient of a scalar loss multiplies dx and dW in the backward, at no cost when it is
1. With `reduction="none"` it is known only then: the forward keeps nothing, the backward makes the
logits of each chunk again, six products in all.

    x [M, H]; W [V, H]; b [V] or none; labels [M] or none
    M tokens, H hidden size (each head its own), V vocabulary of both, C rows of a chunk
"""

from typing import Any

import torch
from liger_core.autograd import autocast
from torch import Tensor

from .arguments import check_range, is_static
from .divergence import divergence_ref
from .divergence_arguments import (
    check_beta,
    check_heads,
    check_labels,
    check_options,
    check_student,
    check_top_k,
    divergence_scale,
)
from .divergence_op import head_divergence
from .divergence_torch import Divergence

__all__ = [
    "linear_cosine", "linear_divergence_ref", "linear_jsd", "linear_kl_div", "linear_tvd",
]  # fmt: skip


def linear_divergence_ref(
    student_input: Tensor, student_weight: Tensor, teacher_input=None, teacher_weight=None,
    student_bias=None, teacher_bias=None, labels: Tensor | None = None, *, kind: str,
    target_log_probs: Tensor | None = None, target_ids=None, reduction: str = "mean",
    normalizer: float | None = None, temperature: float = 1.0, ignore_index: int = -100, **options,
) -> Tensor:  # fmt: skip
    z = torch.nn.functional.linear(student_input, student_weight, student_bias)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if target_log_probs is not None:
        v, u = target_log_probs.to(z.dtype), (z / temperature).log_softmax(-1)
        rows = (v.exp() * (v - u.gather(-1, target_ids.long()))).sum(-1)
        rows = rows if labels is None else rows.where(labels != ignore_index, 0.0)
    else:
        y = torch.nn.functional.linear(teacher_input, teacher_weight, teacher_bias)
        if kind == "cosine":
            rows = 1.0 - torch.nn.functional.cosine_similarity(z, y.to(z.dtype), dim=-1)
            rows = rows if labels is None else rows.where(labels != ignore_index, 0.0)
        else:
            options = {"temperature": temperature, "ignore_index": ignore_index, **options}
            rows = divergence_ref(z, y, labels, kind=kind, from_logits=True, **options).sum(-1)
    if reduction != "mean":
        return rows.sum() if reduction == "sum" else rows
    count = rows.numel() if labels is None else (labels != ignore_index).sum()
    return rows.sum() / (max(int(count), 1) if normalizer is None else normalizer)


def _linear_divergence(
    name: str, student: tuple[Tensor, Tensor, Tensor | None],
    teacher: tuple[Any, ...], labels: Tensor | None,
    how: Divergence, reduction: str, normalizer: float | Tensor | None, chunk_bytes: int | None,
) -> Tensor:  # fmt: skip
    """`teacher`: hidden states, weight, bias and None; or log-probabilities, None, None and ids."""
    x, W, b = student
    tx, tW, tb, ids = teacher
    if tW is None:
        x, W, b = autocast(x, W, b)
        check_student(name, x, W, b)
        check_top_k(name, x, tx, ids)
        # an entry of probability 0 may have any id
        check_range(name, ids.where(tx.exp() != 0, 0), len(W), None, "target_ids")
        check_labels(name, labels, x)
    else:
        x, W, b, tx, tW, tb = autocast(x, W, b, tx, tW, tb)
        check_heads(name, x, W, b, tx, tW, tb, labels)
    check_options(name, how, reduction, ("mean", "sum", "none"), normalizer)
    shape = x.shape[:-1]
    per_row = "row mean" if reduction == "mean" else "sum"
    scale = divergence_scale(x, tx, labels, how.ignore_index, per_row, normalizer)
    grad = torch.is_grad_enabled()
    need = [grad and t is not None and t.requires_grad for t in (x, W, b)]
    x, tx = x.reshape(-1, x.shape[-1]), tx.reshape(-1, tx.shape[-1])
    if tW is None and ids is not None:
        tx, ids = tx.contiguous(), ids.reshape(tx.shape).contiguous()
    flat = None if labels is None else labels.reshape(-1).contiguous()
    loss, *_ = head_divergence(
        x, W, b, tx, tW, tb, ids, flat, scale, need, how.kind, how.beta, how.temperature,
        how.ignore_index, chunk_bytes, is_static(x), reduction == "none",
    )  # fmt: skip
    return loss.reshape(shape) if reduction == "none" else loss


def linear_kl_div(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor | None = None,
    teacher_weight: Tensor | None = None, *, student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None, target_log_probs: Tensor | None = None,
    target_ids: Tensor | None = None, direction: str = "forward", reduction: str = "mean",
    temperature: float = 1.0, labels: Tensor | None = None, ignore_index: int = -100,
    normalizer: float | Tensor | None = None, chunk_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Kullback-Leibler divergence between the logits of a student's and a teacher's head, without
    the logits.

    forward: sum_j p_j (log p_j - log q_j);  reverse: sum_j q_j (log q_j - log p_j), with
    q = softmax((x W^T + b) / temperature) of the student and p that of the teacher. In place of
    the teacher's head k of its log-probabilities a token may be given: sum_k p_k (log p_k -
    log q_k) over the listed classes, whose p need not sum to one.

    Args:
        student_input: hidden states x, [..., H]; float16, bfloat16, float32 or float64.
        student_weight: W, [V, H], in the dtype of x; under autocast both are cast as by a linear
            layer.
        teacher_input: hidden states of the teacher, [..., H'], for the same tokens; no gradient.
        teacher_weight: [V, H'], in the dtype of teacher_input; no gradient.
        student_bias, teacher_bias: [V] or None.
        target_log_probs: log p of listed classes, [..., k], instead of a teacher's head; forward
            only; no gradient. -inf leaves an entry out.
        target_ids: their classes, [..., k], int64 or int32. A class listed twice counts twice. One
            out of range makes the loss and the gradients of its token NaN.
        direction: "forward" or "reverse".
        reduction: "mean" over the tokens that count, "sum", or "none" for one loss a token. "none"
            keeps nothing and makes the logits again in the backward: six products instead of four.
        temperature: divides the logits, of both heads; the loss is not multiplied by its square.
        labels: [...], int64 or int32, or None: tokens labelled `ignore_index` do not count; where
            they are more than one in 64, they are left out of every product.
        normalizer: what "mean" divides by instead, e.g. the number of tokens in all accumulated
            batches; no gradient.
        chunk_bytes: bytes of a chunk's logits of the student; those of the teacher take as many. By
            default as in `linear_cross_entropy`.

    Returns:
        fp32 (fp64 if one of the two is), a scalar or [...]. 0 where no token counts.

    Peak memory of forward and backward beside the inputs: 2 C V + M H + V H elements for C rows a
    chunk (C V without a teacher's head), and gathered hidden states of one chunk where tokens are
    left out; what is frozen is left out. Reading which tokens count takes one early synchronisation
    with the device; without labels, under CUDA-graph capture and under torch.compile there is none,
    and every token is computed.

    Raises:
        ValueError: shapes, devices, numbers or options that do not fit; a teacher that requires a
            gradient.
        TypeError: dtypes that do not fit.
        RuntimeError: a second backward of a scalar, whose gradients are formed in the forward.

    Source: torch.nn.functional.kl_div; forming gradients in the forward: arXiv:2410.10989.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(
            f"linear_kl_div: direction must be 'forward' or 'reverse', not {direction!r}"
        )
    kind = "kl" if direction == "forward" else "reverse_kl"
    how = Divergence(kind, 0.5, True, float(temperature), True, ignore_index)
    head, entries = (teacher_input, teacher_weight), (target_log_probs, target_ids)
    listed = teacher_input is None
    left_out, given = (head, entries) if listed else (entries, head)
    if (
        any(t is not None for t in left_out)
        or any(t is None for t in given)
        or (listed and (direction, teacher_bias) != ("forward", None))
    ):
        raise ValueError(
            "linear_kl_div: give teacher_input and teacher_weight, or target_log_probs and "
            "target_ids with direction='forward' and no teacher_bias"
        )
    teacher: tuple[Any, ...] = teacher_input, teacher_weight, teacher_bias, None
    if listed:
        teacher = target_log_probs, None, None, target_ids
    student = student_input, student_weight, student_bias
    return _linear_divergence(
        "linear_kl_div", student, teacher, labels, how, reduction, normalizer, chunk_bytes
    )


def linear_jsd(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor,
    *, student_bias: Tensor | None = None, teacher_bias: Tensor | None = None, beta: float = 0.5,
    reduction: str = "mean", temperature: float = 1.0, labels: Tensor | None = None,
    ignore_index: int = -100, normalizer: float | Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Generalised Jensen-Shannon divergence between the logits of a student's and a teacher's head,
    without the logits.

    beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, with q of the student and p
    of the teacher; beta = 0 and 1 stand for the forward and the reverse KL, as in `jsd`. Arguments,
    result, peak memory and errors are those of `linear_kl_div`.

    Source: Agarwal et al. 2023, arXiv:2306.13649.
    """
    kind = check_beta("linear_jsd", beta)
    return _linear_divergence(
        "linear_jsd", (student_input, student_weight, student_bias),
        (teacher_input, teacher_weight, teacher_bias, None), labels,
        Divergence(kind, float(beta), True, float(temperature), True, ignore_index), reduction,
        normalizer, chunk_bytes,
    )  # fmt: skip


def linear_tvd(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor,
    *, student_bias: Tensor | None = None, teacher_bias: Tensor | None = None,
    reduction: str = "mean", temperature: float = 1.0, labels: Tensor | None = None,
    ignore_index: int = -100, normalizer: float | Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Total variation distance between the logits of a student's and a teacher's head, without the
    logits.

    1/2 sum_j |p_j - q_j|, with q of the student and p of the teacher. Arguments, result, peak
    memory and errors are those of `linear_kl_div`.
    """
    return _linear_divergence(
        "linear_tvd", (student_input, student_weight, student_bias),
        (teacher_input, teacher_weight, teacher_bias, None), labels,
        Divergence("tvd", 0.5, True, float(temperature), True, ignore_index), reduction,
        normalizer, chunk_bytes,
    )  # fmt: skip


def linear_cosine(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor,
    *, student_bias: Tensor | None = None, teacher_bias: Tensor | None = None,
    reduction: str = "mean", labels: Tensor | None = None, ignore_index: int = -100,
    normalizer: float | Tensor | None = None, chunk_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Cosine distance between the logits of a student's and a teacher's head, without the logits.

    1 - z . y / (|z| |y|), with z = x W^T + b of the student and y of the teacher; a norm below 1e-8
    counts as 1e-8. Arguments, result, peak memory and errors are those of `linear_kl_div`.

    Source: torch.nn.functional.cosine_similarity.
    """
    return _linear_divergence(
        "linear_cosine", (student_input, student_weight, student_bias),
        (teacher_input, teacher_weight, teacher_bias, None), labels,
        Divergence("cosine", 0.5, True, 1.0, True, ignore_index), reduction, normalizer,
        chunk_bytes,
    )  # fmt: skip
