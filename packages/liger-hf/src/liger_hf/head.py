"""Head and loss: the model's own forward, with the logits left out.

Three attributes are replaced. The head's forward returns deferred logits while it trains, to the
forward of the model and nobody else. The model's loss function gets them, calls the head once more
and computes the linear loss inside that call, where the hooks of FSDP2 and ZeRO-3 have gathered the
weight. The model's forward hands real logits to its caller unless a loss was computed: code that
trains on `model(input_ids).logits` sees a tensor. With `skip_logits=True`, which Trainer passes
where an evaluation asks for the loss alone, there are no logits in evaluation either, and
`outputs.logits` is None.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from .deferred import DeferredLogits, whole_shape
from .logit_ops import fold
from .replaced import ModelForward, Patch
from .reporting import Row
from .window import deferring, opened

__all__ = ["HeadPatch", "LossPatch", "ModelPatch", "linear_op", "targets"]

# Logits alive at once: 2048 tokens of a vocabulary of 128,256, at which the products run at their
# full rate. Of larger ones the op takes more by itself, but here the activations of all layers are
# alive beside them, and that would make this the peak of a training step.
CHUNK_BYTES = 512 * 2**20


class HeadPatch(Patch):
    """In training the head returns deferred logits to its model's forward, and to nobody else.

    For real ones it is called with `real=True`. Called with `compute`, it runs
    compute(input, weight, bias) instead of the linear map.
    """

    __slots__ = ()

    def __call__(
        self, input: Tensor, compute: Callable[..., Any] | None = None, real: bool = False
    ) -> Any:
        head: Any = self.module
        if compute is not None:
            self._check_gathered()
            return compute(input, head.weight, head.bias)
        if real:
            self._check_gathered()
        window = deferring(self) if self.active and not real else None
        if window is None:
            return self.inner(input)
        logits = DeferredLogits(window.entry, input)
        logits.used = window.left_out
        return logits

    def _check_gathered(self) -> None:
        head: Any = self.module
        whole = whole_shape(head)
        if type(head.weight) not in (nn.Parameter, Tensor) or head.weight.shape != whole:
            raise RuntimeError(
                f"liger_hf: weight of {self.row.path} is {type(head.weight).__name__} "
                f"{tuple(head.weight.shape)} while its forward runs, not {whole}: FSDP or ZeRO-3 "
                "has not gathered it; wrap the head with the whole model and leave outputs.logits "
                "unread, or patch with loss=False"
            )


class ModelPatch(ModelForward):
    """Hands real logits on, unless a loss was computed or `skip_logits` leaves them out.

    Attributes:
        contract: answers calls with `fused_lm_head=True`, as trainers of TRL make them; or None.
    """

    __slots__ = ("contract",)

    def __init__(self, model: nn.Module, row: Row):
        super().__init__(model, row)
        self.contract: Callable[..., Any] | None = None

    def __call__(self, *args: Any, skip_logits: bool | None = None, **kwargs: Any) -> Any:
        args = self.given(args)
        if not self.active:
            return self.inner(*args, **kwargs)
        if self.contract is not None and kwargs.pop("fused_lm_head", False):
            return self.contract(self, *args, **kwargs)
        # Trainer also takes the labels out, where it computes another loss from the logits
        if not skip_logits or kwargs.get("labels") is None:
            with opened(self._entry()):
                outputs = self.inner(*args, **kwargs)
            return _settled(outputs)
        outputs = self.without_logits(*args, **kwargs)
        if type(outputs) is tuple:
            return tuple(value for value in outputs if not isinstance(value, DeferredLogits))
        # made anew: an output keeps what it was made of among its items, whatever is set later
        return replace(outputs, logits=None)

    def without_logits(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own outputs, with deferred logits wherever the head can defer them."""
        with opened(self._entry(), left_out=True):
            return self.inner(*args, **kwargs)

    def _entry(self) -> Any:
        """Asked for in every call: adapters wrap and copy heads, and others replace them."""
        model: Any = self.module
        return model.get_output_embeddings()


def _settled(outputs: Any) -> Any:
    """Logits from which no loss was computed are real ones."""
    if type(outputs) is tuple:
        return tuple(_real(value) for value in outputs)
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, DeferredLogits) and not logits.used:
        outputs.logits = logits.materialize()
    return outputs


def _real(value: Any) -> Any:
    return value.materialize() if isinstance(value, DeferredLogits) and not value.used else value


class LossPatch(Patch):
    """ForCausalLMLoss of transformers, on deferred logits; others go to the loss from before.

    Attributes:
        before: the loss function of the model.
        others: parameters that it names and we do not have; calls with one of these go to it.
    """

    __slots__ = ("before", "op", "others")

    def __init__(self, model: Any, row: Row, op: Callable[..., Tensor]):
        super().__init__(model, row, "loss_function")
        self.op = op
        self.before = model.loss_function
        # of a head that was replaced since
        stale = getattr(self.before, "__self__", None)
        if isinstance(stale, LossPatch):
            self.before = stale.before
        self.others = _parameters(self.before) - _parameters(self)

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
            and not any(name in self.others for name in kwargs)
        ):
            options = fold(logits.ops)
        if options is None:
            real = logits.materialize() if isinstance(logits, DeferredLogits) else logits
            kwargs |= {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels}
            return self.before(real, labels, vocab_size, ignore_index=ignore_index, **kwargs)
        logits.used = True
        compute = partial(
            linear_op,
            op=self.op,
            target=targets(labels, shift_labels, ignore_index),
            ignore_index=ignore_index,
            normalizer=num_items_in_batch,
            **options,
        )
        return logits.head(logits.hidden, compute)


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names that can be given as keywords; none where a signature cannot be had."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(
        p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def targets(labels: Tensor | None, shift_labels: Tensor | None, ignore_index: int) -> Tensor:
    if shift_labels is None:
        assert labels is not None
        # the target of a token is the label of the next; the last has none
        shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return shift_labels.reshape(-1)


def linear_op(
    input: Tensor, weight: Tensor, bias: Tensor | None, *,
    op: Any, target: Tensor, classes: int | None = None, **options: Any,
) -> Any:  # fmt: skip
    """A function of the logits of a head that takes its input and weight instead."""
    rows = input.reshape(-1, input.shape[-1])
    if classes is not None:
        weight, bias = weight[:classes], None if bias is None else bias[:classes]
    if rows.is_cuda:
        options["chunk_bytes"] = CHUNK_BYTES
    return op(rows, weight, target.to(rows.device), linear_bias=bias, **options)
