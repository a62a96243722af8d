"""Divergences of rows and their gradients in PyTorch, with the formulas and names of
`divergence_kernels`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Divergence", "divergence_bwd_torch", "divergence_fwd_torch"]


class Divergence(NamedTuple):
    """What defines the divergence of two rows. `kind` is "kl" (target from input), "reverse_kl",
    "jsd" or "tvd"; without `logits` the input holds log-probabilities, and the target too if
    `log_target`.
    """

    kind: str
    beta: float = 0.5
    logits: bool = False
    temperature: float = 1.0
    log_target: bool = True
    ignore_index: int = -100


def _logs_torch(x: Tensor, acc: torch.dtype, how: Divergence) -> Tensor:
    x = x.to(acc)
    return torch.log_softmax(x / how.temperature, -1) if how.logits else x


def _terms_torch(x: Tensor, p: Tensor, how: Divergence) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its derivative by log q, and q, of each class."""
    acc = torch.promote_types(torch.promote_types(x.dtype, p.dtype), torch.float32)
    u = _logs_torch(x, acc, how)
    v = _logs_torch(p, acc, how) if how.log_target else p.to(acc).log()
    p, q = v.exp() if how.log_target else p.to(acc), u.exp()
    if how.kind == "kl":
        return (p * (v - u)).masked_fill_(p == 0, 0.0), -p, q
    if how.kind == "reverse_kl":
        loss = (q * (u - v)).masked_fill_(q == 0, 0.0)
        return loss, loss if how.logits else loss + q, q
    if how.kind == "tvd":
        return 0.5 * (p - q).abs(), 0.5 * q * torch.sign(q - p), q
    beta = how.beta
    d = (v - u).masked_fill_(u == v, 0.0)
    # log of m over the larger of p and q
    smaller = torch.where(d > 0, d.new_full((), 1.0 - beta), beta)
    log_m = torch.log1p(smaller * torch.expm1(-d.abs()))
    student = (q * (-d.clamp(min=0.0) - log_m)).masked_fill_(q == 0, 0.0).mul_(1.0 - beta)
    teacher = (p * (d.clamp(max=0.0) - log_m)).masked_fill_(p == 0, 0.0).mul_(beta)
    return student + teacher, student, q


def divergence_fwd_torch(
    x: Tensor,
    p: Tensor,
    labels: Tensor | None,
    how: Divergence,
    dx: Tensor | None,
    g: Tensor | None,
) -> Tensor:
    loss = _terms_torch(x, p, how)[0].sum(-1)
    if dx is not None and g is not None:
        divergence_bwd_torch(x, p, labels, how, dx, g)
    # not in place: Dynamo of torch 2.11 loses the gradient of a result that is also an intermediate
    return loss if labels is None else loss.masked_fill(labels == how.ignore_index, 0.0)


def divergence_bwd_torch(
    x: Tensor, p: Tensor, labels: Tensor | None, how: Divergence, dx: Tensor, g: Tensor
) -> None:
    _, d, q = _terms_torch(x, p, how)
    if how.logits:
        d = d - q * (-1.0 if how.kind == "kl" else d.sum(-1, keepdim=True))
    d *= (g / how.temperature).expand(d.shape[0])[:, None]
    if labels is not None:
        d = d.masked_fill_((labels == how.ignore_index)[:, None], 0.0)
    dx.copy_(d)
