"""Find the output heads of a model and say whether their logits can be left out."""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.parametrize import is_parametrized

from .forms import TOLERANCE, load
from .head import HeadPatch, LossPatch, ModelPatch, linear_op, targets
from .probe import difference, measured, normal
from .replaced import Patch, leftover, patches
from .reporting import Row
from .window import observed, plain_heads

__all__ = ["find_heads", "language_models"]

NO_LOSS = "forward does not call self.loss_function"


def find_heads(model: nn.Module) -> Iterator[tuple[Row, list[Patch]]]:
    """A row for every output head, with the patches of head, model and loss."""
    found = [_find(*parts) for parts in language_models(model)]
    if not found:
        reason = "holds no transformers model with an output head"
        yield Row("", type(model).__name__, reason=reason), []
    # a part may use its logits for something else, as BLT's patcher does
    yield from [item for item in found if not item[0].reason.endswith(NO_LOSS)] or found[:1]


def language_models(model: nn.Module) -> Iterator[tuple[str, list[nn.Module], nn.Module]]:
    """(path, models whose output head it is, head), the outermost model first."""
    from transformers import PreTrainedModel

    paths = {module: path for path, module in model.named_modules()}
    owners: dict[nn.Module, list[nn.Module]] = {}
    for module in paths:
        head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        if isinstance(head, nn.Module):
            owners.setdefault(head, []).append(module)
    for head, models in owners.items():
        yield paths.get(head, ""), models, head


def _find(path: str, owners: list[nn.Module], head: nn.Module) -> tuple[Row, list[Patch]]:
    row = Row(path, type(head).__name__)
    heads = plain_heads(head)
    for patch in [patch for plain in heads for patch in patches(plain)]:
        return replace(patch.row, path=path), []
    reasons = [_refusal_of_model(owner) for owner in owners]
    reason = reasons[0] if all(reasons) else next(filter(None, map(_refusal_of_head, heads)), "")
    if reason:
        return replace(row, reason=reason), []
    op = load("liger_losses", "linear_cross_entropy")
    if op is None:
        return replace(row, reason="pip install liger-losses"), []
    owner = owners[reasons.index("")]
    gap = _probe_loss(LossPatch(owner, row, op))
    if gap > TOLERANCE[torch.float32]:
        return replace(row, reason=f"loss function is no causal-LM loss, {measured(gap)}"), []
    row = replace(row, form="head + causal-LM loss", op="liger_losses.linear_cross_entropy")
    found = [HeadPatch(plain, row) for plain in heads]
    return row, [*found, ModelPatch(owner, row), LossPatch(owner, row, op)]


def _refusal_of_model(model: nn.Module) -> str:
    """Why the loss of a model is not the one that its head's logits go to; or empty."""
    name = type(model).__name__
    kinds = type(model).__mro__
    forward = inspect.unwrap(model.forward)
    home = getattr(getattr(forward, "__func__", forward), "__module__", None)
    if home not in {kind.__module__ for kind in kinds}:
        return f"{name}.forward was replaced already, by {home}"
    # a subclass may add something and call the forward that it inherits
    forwards = [inspect.unwrap(vars(kind)["forward"]) for kind in kinds if "forward" in vars(kind)]
    names = [getattr(getattr(f, "__code__", None), "co_names", ()) for f in forwards]
    if not any("loss_function" in used for used in names):
        return f"{name}.{NO_LOSS}"
    return ""


def _refusal_of_head(head: Any) -> str:
    """Why the logits of a head cannot be left out; or empty."""
    if type(head).forward is not nn.Linear.forward:
        return f"head is {type(head).__module__}.{type(head).__name__}, not a plain nn.Linear"
    if "forward" in vars(head) and leftover(head) is None:
        return "its forward was replaced already, by another library"
    if not head.weight.is_floating_point():
        return f"weight is {head.weight.dtype}"
    if is_parametrized(head):
        return "its weight is parametrised"
    return observed(head)


def _probe_loss(patch: LossPatch) -> float:
    """The largest difference between the model's loss of logits and ours of hidden states."""
    hidden, width, vocab = normal(2, 5, 8), 8, 11
    weight, bias = normal(vocab, width), normal(vocab)
    labels = torch.arange(10).view(2, 5)
    masked = labels.where(labels != 4, -100)
    cases: list[dict[str, Any]] = [
        {"labels": masked},
        {"labels": masked, "num_items_in_batch": torch.tensor(7)},
        {"labels": labels, "num_items_in_batch": 3, "ignore_index": 4},
        {"labels": labels, "shift_labels": masked.roll(1, 0)},
    ]
    worst = 0.0
    for case in cases:
        try:
            expected = patch.before(logits=linear(hidden, weight, bias), vocab_size=vocab, **case)
            ignore_index = case.get("ignore_index", -100)
            actual = linear_op(
                hidden, weight, bias, op=patch.op,
                target=targets(case["labels"], case.get("shift_labels"), ignore_index),
                ignore_index=ignore_index, normalizer=case.get("num_items_in_batch"),
            )  # fmt: skip
            worst = max(worst, difference(expected, actual))
        except Exception:
            return float("inf")
    return worst
