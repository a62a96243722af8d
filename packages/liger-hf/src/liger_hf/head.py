"""Head and loss: the model's own forward, with the logits left out.

Three attributes are replaced. The head's forward returns deferred logits while it trains. The
model's loss function gets them, calls the head once more and computes the linear loss inside that
call, where the hooks of FSDP2 and ZeRO-3 have gathered the weight. The model's forward hands real
logits to its caller unless a loss was computed: code that trains on `model(input_ids).logits` sees
a tensor.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from .deferred import DeferredLogits, fold
from .forms import TOLERANCE, load
from .patch import Patch, patches
from .probe import difference, measured, normal
from .reporting import Row

__all__ = ["find_head"]

# code that gathers sharded parameters, in whose presence a head may be called twice
SHARDING = ("torch.distributed.", "deepspeed.")


def _observed(module: nn.Module) -> bool:
    """Whether somebody else's hook waits for the output of `module`, or changes its input."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not (getattr(hook, "__module__", None) or "").startswith(SHARDING) for hook in hooks)


# Logits alive at once. Less than the op takes by itself: here the activations of all layers are
# alive beside them, and more would make this the peak of a training step.
CHUNK_BYTES = 408 * 2**20


class HeadPatch(Patch):
    """Called with `compute`, the head runs compute(input, weight, bias), not the linear map."""

    __slots__ = ()

    def __call__(self, input: Tensor, compute: Callable[..., Tensor] | None = None) -> Any:
        head: Any = self.module
        if compute is not None:
            return compute(input, head.weight, head.bias)
        if (
            not self.active
            or not head.training
            or _observed(head)
            or type(head.weight) not in (nn.Parameter, Tensor)
        ):
            return self.inner(input)
        return DeferredLogits(head, input)


class ModelPatch(Patch):
    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # accelerate's unwrap_model binds the innermost forward it finds to the model once more
        outputs = self.inner(*(args[1:] if args and args[0] is self.module else args), **kwargs)
        if type(outputs) is tuple:
            return tuple(_settled(value) for value in outputs)
        logits = getattr(outputs, "logits", None)
        if isinstance(logits, DeferredLogits) and not logits.used:
            outputs.logits = logits.materialize()
        return outputs


def _settled(value: Any) -> Any:
    return value.materialize() if isinstance(value, DeferredLogits) and not value.used else value


class LossPatch(Patch):
    """ForCausalLMLoss of transformers, on deferred logits; others go to the loss from before."""

    __slots__ = ("before", "op")

    def __init__(self, model: Any, row: Row, op: Callable[..., Tensor]):
        super().__init__(model, row, "loss_function")
        self.op = op
        self.before = model.loss_function

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        return self.before(*args, **kwargs)

    def __call__(
        self,
        logits: Any,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | float | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options: dict[str, Any] | None = None
        if (
            isinstance(logits, DeferredLogits)
            and logits.tensor is None
            and logits.shape[-1] == vocab_size
        ):
            options = fold(logits.ops)
        if options is None:
            real = logits.materialize() if isinstance(logits, DeferredLogits) else logits
            kwargs |= {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels}
            return self.before(real, labels, vocab_size, ignore_index=ignore_index, **kwargs)
        logits.used = True
        compute = partial(
            _linear_loss,
            op=self.op,
            target=_targets(labels, shift_labels, ignore_index),
            ignore_index=ignore_index,
            normalizer=num_items_in_batch,
            chunk_bytes=CHUNK_BYTES if logits.hidden.is_cuda else None,
            **options,
        )
        return logits.head(logits.hidden, compute)


def _targets(labels: Tensor | None, shift_labels: Tensor | None, ignore_index: int) -> Tensor:
    if shift_labels is None:
        assert labels is not None
        # the target of a token is the label of the next; the last has none
        shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return shift_labels.reshape(-1)


def _linear_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, *, op: Any, target: Tensor, **options: Any
) -> Tensor:
    rows = input.reshape(-1, input.shape[-1])
    return op(rows, weight, target.to(rows.device), linear_bias=bias, **options)


def find_head(model: nn.Module) -> tuple[Row, list[Patch]]:
    """The row of the output head, with its three patches."""
    found = _language_model(model)
    if found is None:
        return Row(
            "", type(model).__name__, reason="holds no transformers model with an output head"
        ), []
    path, owner, head = found
    row = Row(path, type(head).__name__)
    for patch in patches(head):
        return replace(patch.row, path=path), []
    reason = _refusal(owner, head)
    if reason:
        return replace(row, reason=reason), []
    op = load("liger_losses", "linear_cross_entropy")
    if op is None:
        return replace(row, reason="pip install liger-losses"), []
    gap = _probe_loss(LossPatch(owner, row, op))
    if gap > TOLERANCE[torch.float32]:
        return replace(row, reason=f"loss function is no causal-LM loss, {measured(gap)}"), []
    row = replace(row, form="head + causal-LM loss", op="liger_losses.linear_cross_entropy")
    return row, [HeadPatch(head, row), ModelPatch(owner, row), LossPatch(owner, row, op)]


def _language_model(model: nn.Module) -> tuple[str, nn.Module, nn.Module] | None:
    from transformers import PreTrainedModel

    for module in model.modules():
        head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        if isinstance(head, nn.Module):
            path = next((path for path, child in model.named_modules() if child is head), "")
            return path, module, head
    return None


def _refusal(model: nn.Module, head: Any) -> str:
    """Why real logits stay; empty where the head can be left out."""
    forward = inspect.unwrap(type(model).forward)
    if "loss_function" not in getattr(getattr(forward, "__code__", None), "co_names", ()):
        return f"{type(model).__name__}.forward does not call self.loss_function"
    if type(head).forward is not nn.Linear.forward:
        return f"head is {type(head).__module__}.{type(head).__name__}, not a plain nn.Linear"
    if "forward" in vars(head):
        return "its forward was replaced already, by another library"
    if _observed(head):
        return "has forward hooks"
    if not head.weight.is_floating_point():
        return f"weight is {head.weight.dtype}"
    return ""


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
            actual = _linear_loss(
                hidden, weight, bias, op=patch.op,
                target=_targets(case["labels"], case.get("shift_labels"), ignore_index),
                ignore_index=ignore_index, normalizer=case.get("num_items_in_batch"),
            )  # fmt: skip
            worst = max(worst, difference(expected, actual))
        except Exception:
            return float("inf")
    return worst
