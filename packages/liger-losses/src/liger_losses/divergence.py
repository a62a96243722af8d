"""Divergences between rows that exist: `input` is the student's, `target` the teacher's, which gets
no gradient. Loss and gradient of a row are those of `divergence_kernels`.

A scalar loss forms its gradient in the forward, where both rows are at hand: log-probabilities are
read once. The backward multiplies it by the upstream gradient, at no cost when that is 1. Losses of
rows, and all that torch.compile traces, keep five numbers a row of logits and form it in the
backward.
"""

import torch
from torch import Tensor

from .divergence_arguments import check_beta, check_divergence, divergence_scale
from .divergence_function import divergence_rows, divergence_total
from .divergence_torch import Divergence

__all__ = ["JSDLoss", "KLDivLoss", "TVDLoss", "divergence_ref", "jsd", "kl_div", "tvd"]


def divergence_ref(
    input: Tensor, target: Tensor, labels: Tensor | None = None, *, kind: str, beta: float = 0.5,
    from_logits: bool = False, temperature: float = 1.0, log_target: bool = True,
    ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    """The summands of each class, [..., V]."""
    dtype = torch.promote_types(torch.promote_types(input.dtype, target.dtype), torch.float32)
    u, v = input.to(dtype), target.to(dtype)
    if from_logits:
        u, v = ((x / temperature).log_softmax(-1) for x in (u, v))
    v = v if log_target else v.log()

    def kl(a: Tensor, b: Tensor) -> Tensor:
        # 0 where a is: a difference of -inf would make NaN of it, and of its gradient
        return a.exp() * (a - b).masked_fill(a.exp() == 0, 0.0)

    if kind == "tvd":
        loss = 0.5 * (u.exp() - v.exp()).abs()
    elif kind == "jsd" and 0.0 < beta < 1.0:
        weights = torch.tensor([beta, 1.0 - beta], dtype=dtype, device=u.device).log()
        m = torch.logaddexp(v + weights[0], u + weights[1])
        loss = beta * kl(v, m) + (1.0 - beta) * kl(u, m)
    else:
        loss = kl(u, v) if kind == "reverse_kl" or (kind, beta) == ("jsd", 1.0) else kl(v, u)
    return loss if labels is None else loss.where((labels != ignore_index)[..., None], 0.0)


def kl_div(
    input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False,
    direction: str = "forward", from_logits: bool = False, temperature: float = 1.0,
    labels: Tensor | None = None, ignore_index: int = -100,
    normalizer: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Kullback-Leibler divergence of the student `input` from the teacher `target`, as
    `torch.nn.functional.kl_div`.

    forward: sum_j p_j (log p_j - log q_j);  reverse: sum_j q_j (log q_j - log p_j), with q of the
    student and p of the teacher. A class adds 0 where the first factor is 0, and infinity where the
    other probability alone is 0.

    Args:
        input: log-probabilities log q of the student, [..., V]; float16, bfloat16, float32 or
            float64. They need not sum to one: the gradient is that of each by itself.
        target: probabilities p of the teacher, or log p with `log_target`, in the shape of input;
            no gradient.
        reduction: "mean" over all elements that count, "batchmean" (the sum over input.shape[0],
            or over the rows [M, V] that count), "sum", "row" for one loss a row, or "none" for each
            element, which takes PyTorch several tensors in the shape of input.
        log_target: the target holds log-probabilities.
        direction: "forward", that of torch, or "reverse".
        from_logits: input and target are logits; the kernel forms log_softmax(x / temperature).
        temperature: of logits; the loss is not multiplied by its square.
        labels: [...], int64 or int32, or None: rows labelled `ignore_index` do not count, are not
            read and get a zero gradient.
        normalizer: what "mean" and "batchmean" divide by instead; no gradient.

    Returns:
        fp32 (fp64 if one of the two is), a scalar, [...] for "row" or [..., V] for "none". 0 where
        no row counts.

    Peak memory beside the inputs, M rows and an element size of b bytes: M V b + 4 M for a scalar
    in eager mode; else M V b + 4 M, and 20 M of five numbers a row of logits.

    Raises:
        ValueError: shapes, devices, numbers or options that do not fit; a target that requires a
            gradient.
        TypeError: dtypes that do not fit.
        RuntimeError: a second backward of a scalar, whose gradient is formed in the forward.

    Source: torch.nn.functional.kl_div.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"kl_div: direction must be 'forward' or 'reverse', not {direction!r}")
    if log_target and from_logits:
        raise ValueError("kl_div: from_logits=True takes logits as target; log_target does not fit")
    kind = "kl" if direction == "forward" else "reverse_kl"
    log_target = log_target or from_logits
    how = Divergence(kind, 0.5, from_logits, float(temperature), log_target, ignore_index)
    reductions = ("mean", "batchmean", "sum", "row", "none")
    check_divergence("kl_div", input, target, labels, how, reduction, reductions, normalizer)
    if reduction == "none":
        return divergence_ref(
            input, target, labels, kind=kind, from_logits=from_logits, temperature=temperature,
            log_target=log_target, ignore_index=ignore_index,
        )  # fmt: skip
    if reduction == "row":
        return divergence_rows(input, target, labels, how)
    scale = divergence_scale(input, target, labels, ignore_index, reduction, normalizer)
    return divergence_total(input, target, labels, how, scale)


def jsd(
    input: Tensor, target: Tensor, *, beta: float = 0.5, reduction: str = "mean",
    from_logits: bool = False, temperature: float = 1.0, labels: Tensor | None = None,
    ignore_index: int = -100, normalizer: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Generalised Jensen-Shannon divergence between the student `input` and the teacher `target`.

    beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, with q of the student and p
    of the teacher. As in TRL's GKD, beta = 0 stands for KL(p || q), the forward KL, and beta = 1
    for KL(q || p), the reverse: the limits of jsd / beta and of jsd / (1 - beta).

    Args:
        input: log-probabilities log q of the student, [..., V]; float16, bfloat16, float32 or
            float64; logits with `from_logits`.
        target: the same of the teacher, in the shape of input; no gradient.
        beta: in [0, 1].
        reduction: "mean" over the rows that count, "sum", or "none" for one loss a row.
        from_logits, temperature, labels, ignore_index, normalizer: as in `kl_div`.

    Returns:
        fp32 (fp64 if one of the two is), a scalar or [...]. 0 where no row counts.

    Peak memory, errors: as `kl_div`.

    Source: Agarwal et al. 2023, arXiv:2306.13649.
    """
    kind = check_beta("jsd", beta)
    how = Divergence(kind, float(beta), from_logits, float(temperature), True, ignore_index)
    return _of_rows("jsd", input, target, labels, how, reduction, normalizer)


def tvd(
    input: Tensor, target: Tensor, *, reduction: str = "mean", from_logits: bool = False,
    temperature: float = 1.0, labels: Tensor | None = None, ignore_index: int = -100,
    normalizer: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Total variation distance between the student `input` and the teacher `target`.

    1/2 sum_j |p_j - q_j| with q of the student and p of the teacher; where they are equal the
    gradient is 0.

    Args:
        input: log-probabilities log q of the student, [..., V]; float16, bfloat16, float32 or
            float64; logits with `from_logits`.
        target: the same of the teacher, in the shape of input; no gradient.
        reduction: "mean" over the rows that count, "sum", or "none" for one loss a row.
        from_logits, temperature, labels, ignore_index, normalizer: as in `kl_div`.

    Returns:
        fp32 (fp64 if one of the two is), a scalar or [...]. 0 where no row counts.

    Peak memory, errors: as `kl_div`.

    Source: Wen et al. 2023, arXiv:2307.15190.
    """
    how = Divergence("tvd", 0.5, from_logits, float(temperature), True, ignore_index)
    return _of_rows("tvd", input, target, labels, how, reduction, normalizer)


def _of_rows(
    name: str, input: Tensor, target: Tensor, labels: Tensor | None, how: Divergence,
    reduction: str, normalizer: float | Tensor | None,
) -> Tensor:  # fmt: skip
    reductions = ("mean", "sum", "none")
    check_divergence(name, input, target, labels, how, reduction, reductions, normalizer)
    if reduction == "none":
        return divergence_rows(input, target, labels, how)
    # per row, not per element as in torch's kl_div
    reduction = "row mean" if reduction == "mean" else reduction
    scale = divergence_scale(input, target, labels, how.ignore_index, reduction, normalizer)
    return divergence_total(input, target, labels, how, scale)


class KLDivLoss(torch.nn.KLDivLoss):
    """`torch.nn.KLDivLoss` on `kl_div`, with its further options."""

    def __init__(
        self, reduction="mean", log_target=False, *, direction="forward", from_logits=False,
        temperature=1.0, ignore_index=-100,
    ):  # fmt: skip
        super().__init__(reduction=reduction, log_target=log_target)
        self.options = {
            "direction": direction, "from_logits": from_logits, "temperature": temperature,
            "ignore_index": ignore_index,
        }  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
        return kl_div(
            input, target, labels=labels, reduction=self.reduction, log_target=self.log_target,
            **self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        options = {"reduction": self.reduction, "log_target": self.log_target, **self.options}
        return ", ".join(f"{name}={value}" for name, value in options.items())


class JSDLoss(torch.nn.Module):
    """`jsd` with its options."""

    def __init__(self, beta=0.5, **options):
        super().__init__()
        self.options = {"beta": beta, **options}

    def forward(self, input: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
        return jsd(input, target, labels=labels, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


class TVDLoss(torch.nn.Module):
    """`tvd` with its options."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, input: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
        return tvd(input, target, labels=labels, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
