"""What the losses behind a linear head share: its options, their call of `linear_loss`, checks.

A loss is a function of the statistics of tokens, of groups of them, or of the whole batch:

- "token": it needs nothing of other tokens; target [M], three matrix products at any length;
- "group": sequences, or pairs of them, stay together; three products while the logits of a group
  fit 1 GiB, else four;
- "batch": a batch that is one group.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from liger_losses import linear_log_probs, linear_loss
from torch import Tensor

__all__ = [
    "HEAD_OPTIONS", "LinearLoss", "LossOutput", "check_shape", "mean", "mean_where",
    "per_sequence", "per_token",
]  # fmt: skip

HEAD_OPTIONS = (
    "statistics", "temperature", "softcap", "logit_scale", "ignore_index", "chunk_bytes",
)  # fmt: skip


class LossOutput(NamedTuple):
    """The loss, 0-d, and what a trainer logs: detached 0-d tensors by name, NaN for the mean of
    nothing.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class LinearLoss(torch.nn.Module):
    """Options of the head that every loss takes.

    Args:
        statistics: what is logged besides and costs something to compute: "entropy", "mean_logits",
            "argmax" (the token accuracy).
        temperature: divides the logits, after the softcap.
        softcap: bound of the logits, or None.
        logit_scale: factor of the logits before the softcap.
        ignore_index: targets that do not count.
        chunk_bytes: bytes of a chunk's logits, as in `linear_loss`.
    """

    def __init__(
        self, *, statistics: Sequence[str] = (), temperature: float = 1.0,
        softcap: float | None = None, logit_scale: float = 1.0, ignore_index: int = -100,
        chunk_bytes: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.name = type(self).__name__
        for what, value in (("temperature", temperature), ("logit_scale", logit_scale)):
            if value <= 0.0:
                raise ValueError(f"{self.name}: {what} must be positive, got {value}")
        self.statistics, self.ignore_index = tuple(statistics), ignore_index
        # softcap * tanh(scale x / softcap) / temperature, in the two numbers of the head
        self.head: dict[str, Any] = {
            "softcap": None if softcap is None else softcap / temperature,
            "logit_scale": logit_scale / temperature,
            "ignore_index": ignore_index,
            "chunk_bytes": chunk_bytes,
        }

    def extra_repr(self) -> str:
        hidden = ("name", "training")
        shown = {n: v for n, v in vars(self).items() if n not in hidden and not n.startswith("_")}
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def labels(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Checked targets [B, T], `ignore_index` where the mask is 0."""
        check_weight(self.name, "linear_weight", linear_weight)
        shapes = [tuple(t.shape) for t in (input, linear_weight, target)]
        flat = linear_weight.ndim == 2 and target.ndim == 2
        if not flat or shapes[0] != (*shapes[2], shapes[1][1]):
            raise ValueError(
                f"{self.name}: input, linear_weight and target must be [B, T, H], [V, H] and "
                f"[B, T], got {shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        if not input.is_floating_point():
            raise TypeError(f"{self.name}: input {input.dtype} must be floating point")
        if mask is None:
            return target
        check_shape(self.name, "mask", mask, target)
        return target.masked_fill(mask == 0, self.ignore_index)

    def reference(
        self, labels: Tensor, needed: bool, ref_log_probs: Tensor | None, ref_input: Tensor | None,
        ref_weight: Tensor | None, ref_bias: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """The log-probabilities given, or those of a reference head: one product, no gradient."""
        head = [t for t in (ref_input, ref_weight, ref_bias) if t is not None]
        if not needed and (head or ref_log_probs is not None):
            raise ValueError(f"{self.name}: there is no reference in this loss, but one was given")
        if not head and (ref_log_probs is not None or not needed):
            return ref_log_probs
        if ref_log_probs is not None or ref_input is None or ref_weight is None:
            raise ValueError(f"{self.name}: give ref_log_probs, or ref_input and ref_weight")
        check_weight(self.name, "ref_weight", ref_weight)
        with torch.no_grad():
            return linear_log_probs(
                ref_input, ref_weight, labels, linear_bias=ref_bias, **self.head
            ).log_probs

    def of_statistics(
        self, function: Callable[..., tuple[Tensor, dict[str, Tensor]]], level: str,
        head: tuple[Tensor, Tensor, Tensor | None], labels: Tensor, statistics: Sequence[str],
        **tensors: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """linear_loss of function(stats, **tensors) at a level, and its aux with what is logged of
        `self.statistics`; head: input, linear_weight, linear_bias.

        Labels are [N, ...]; tensors [N, ...], those that are not None, broadcast to their shape for
        a function of tokens; aux is [N, ...], or for tokens in the shape of the labels.
        """
        named = {name: t for name, t in tensors.items() if t is not None}
        if "argmax" in self.statistics:
            named["labels"] = labels
        (input, weight, bias), target, parts = head, labels, list(named.values())
        if level == "batch":
            input, target, parts = input[None], labels[None], [t[None] for t in parts]
        elif level == "token":
            input, target = input.flatten(0, -2), labels.flatten()
            parts = [t.expand(labels.shape).flatten() for t in parts]

        def of_named(stats: Any, *parts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            given = dict(zip(named, parts, strict=True))
            labels = given.pop("labels", None)
            losses, aux = function(stats, **given)
            return losses, {**aux, **self.logged(stats, labels)}

        loss, aux = linear_loss(
            of_named, input, weight, target, *parts, linear_bias=bias,
            statistics=tuple(dict.fromkeys((*self.statistics, *statistics))), **self.head,
        )  # fmt: skip
        if level == "batch":
            return loss, {name: t[0] for name, t in aux.items()}
        if level == "token":
            return loss, {name: t.unflatten(0, labels.shape) for name, t in aux.items()}
        return loss, aux

    def logged(self, stats: Any, labels: Tensor | None) -> dict[str, Tensor]:
        found = {}
        if "entropy" in self.statistics:
            found["entropy"] = stats.entropy
        if "mean_logits" in self.statistics:
            found["logits"] = stats.mean_logits
        if labels is not None:
            found["mean_token_accuracy"] = stats.argmax == labels
        return found


def check_weight(name: str, what: str, weight: Any) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{name}: {what} must be the weight tensor of the head, not {type(weight).__name__}; "
            "an adapter on the head would be left out: merge it, or leave the head without one"
        )


def check_shape(name: str, what: str, t: Tensor, like: Tensor) -> None:
    if t.shape != like.shape or t.device != like.device:
        raise ValueError(
            f"{name}: {what} {tuple(t.shape)} on {t.device} must be {tuple(like.shape)} on "
            f"{like.device}"
        )


def per_token(name: str, counts: Tensor, **given: Tensor | None) -> dict[str, Tensor]:
    """Those given, [B, T], without gradient, and 0 where nothing counts."""
    for what, t in given.items():
        if t is not None:
            check_shape(name, what, t, counts)
    return {n: t.detach().where(counts, 0.0) for n, t in given.items() if t is not None}


def per_sequence(name: str, counts: Tensor, **given: Tensor | None) -> dict[str, Tensor]:
    """The same of [B] and [B, 1], as [B, 1], or of [B, T]."""
    found: dict[str, Tensor] = {}
    for what, t in given.items():
        if t is None or t.shape == counts.shape:
            found |= per_token(name, counts, **{what: t})
        elif t.shape not in ((len(counts),), (len(counts), 1)) or t.device != counts.device:
            raise ValueError(
                f"{name}: {what} {tuple(t.shape)} on {t.device} must be [B] or [B, T] for target "
                f"{tuple(counts.shape)} on {counts.device}"
            )
        else:
            # whatever it is where no token counts
            found[what] = t.detach().reshape(-1, 1).where(counts.any(-1, keepdim=True), 0.0)
    return found


def mean(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).mean()


def mean_where(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over what counts, NaN where nothing does."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    return x.where(mask, 0.0).sum() / mask.sum()
