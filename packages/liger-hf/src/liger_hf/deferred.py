"""Logits that are computed when something reads them.

In training, a patched head hands `DeferredLogits` to the model's own forward: the hidden states,
the head, and what the model did to the logits since. The loss is computed from these, and the
logits tensor, the largest of the whole step, never exists. Multiplying or dividing by a number,
tanh, a change of dtype and leaving out the last classes (they pad a vocabulary) are recorded, so
that no table of model names is needed. Anything else turns the object into the tensor that it
stands for (once; from then on it is that tensor, in-place edits included) and goes on with it.

A plain object, not a tensor subclass. A subclass would pass `isinstance` and be handed to C++ code
(collectives, reducers, autograd Functions) that takes it for storage that is not there; it would
also need an autograd node, which has to read the head's weight in the backward, behind the back of
FSDP and ZeRO-3. Code that does not know a plain object leaves it alone, and torch functions reach
`__torch_function__` all the same. torch.compile traces it as it does any Python object.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .logit_ops import REPLAY, TORCH_FUNCTIONS, is_number
from .window import opened

__all__ = ["DeferredLogits", "whole_shape"]


class DeferredLogits:
    """head(hidden), followed by `ops`; a tensor to whoever asks for one.

    Attributes:
        head: the output layer; only called, its weight is not read here.
        hidden: [..., H], its input.
        ops: recorded (name, value), applied in order.
        used: a loss was computed from it, or whoever called the model will.
    """

    # an operator of a NumPy number gives way to ours, as it does for a tensor
    __array_priority__ = 1000

    def __init__(self, head: nn.Linear, hidden: Tensor, ops: tuple[tuple[str, Any], ...] = ()):
        kind = hidden.device.type
        self.head = head
        self.hidden = hidden
        self.ops = ops
        self.used = False
        self.tensor: Tensor | None = None
        # real logits would have been computed under these
        self.with_grad = torch.is_grad_enabled()
        self.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.version = _version(head)

    def materialize(self) -> Tensor:
        """The real logits; computed at the first call.

        Raises RuntimeError where the head's weight has changed since the forward, as after an
        optimizer step.
        """
        if self.tensor is None:
            if self.version is not None and _version(self.head) not in (None, self.version):
                raise RuntimeError(
                    "outputs.logits was first read after the head's weight had changed; read it "
                    "before the optimizer step, or patch with liger_hf.apply(model, loss=False)"
                )
            kind = self.hidden.device.type
            mode = torch.autocast(kind, dtype=self.autocast, enabled=self.autocast is not None)
            with torch.set_grad_enabled(self.with_grad), mode:
                with opened(self.head):
                    logits = self.head(self.hidden)
                # a patched head, which says what is wrong with its weight where something is
                if isinstance(logits, DeferredLogits):
                    logits = self.head(self.hidden, real=True)
                for name, value in self.ops:
                    logits = REPLAY[name](logits, value)
            self.tensor = logits
        return self.tensor

    def _record(self, name: str, value: Any = None) -> Any:
        if self.tensor is not None:
            return REPLAY[name](self.tensor, value)
        later = DeferredLogits(self.head, self.hidden, (*self.ops, (name, value)))
        for field in ("used", "with_grad", "autocast", "version"):
            setattr(later, field, getattr(self, field))
        return later

    def __mul__(self, other: Any) -> Any:
        return self._record("mul", other) if is_number(other) else self.materialize() * other

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._record("div", other) if is_number(other) else self.materialize() / other

    def tanh(self) -> Any:
        return self._record("tanh")

    def float(self) -> Any:
        return self._record("to", torch.float32)

    def contiguous(self) -> Any:
        return self._record("contiguous")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis:
            number = key[1].stop if isinstance(key[1], slice) else None
            if isinstance(number, int) and number > 0 and key[1] == slice(None, number):
                return self._record("classes", number)
        return self.materialize()[key]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.dtype)
        if alone and args[0].is_floating_point:
            return self._record("to", args[0])
        return self.materialize().to(*args, **kwargs)

    @property
    def shape(self) -> torch.Size:
        numbers = [value for name, value in self.ops if name == "classes"]
        return torch.Size((*self.hidden.shape[:-1], min([whole_shape(self.head)[0], *numbers])))

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.autocast or self.hidden.dtype
        for name, value in self.ops:
            dtype = value if name == "to" else dtype
        return dtype

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def ndim(self) -> int:
        return self.hidden.ndim

    def dim(self) -> int:
        return self.hidden.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.materialize())

    def __repr__(self) -> str:
        state = "deferred" if self.tensor is None else "computed"
        return f"DeferredLogits({state}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __reduce__(self) -> Any:
        return _itself, (self.materialize(),)

    def __getattr__(self, name: str) -> Any:
        # for what is not defined here; a copy or pickle under construction has no fields yet
        if name.startswith("__") or "hidden" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.materialize(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = TORCH_FUNCTIONS.get(func)
        alone = name is not None and not kwargs and isinstance(args[0], cls)
        if alone and (name == "tanh" or is_number(args[1])):
            return args[0]._record(name, *args[1:])
        args, kwargs = tree_map_only(cls, cls.materialize, (args, kwargs))
        return func(*args, **kwargs)


def _itself(value: Tensor) -> Tensor:
    return value


def _version(head: nn.Linear) -> tuple[int, int] | None:
    """Which state of the head's weight this is; None where that cannot be told."""
    if torch.compiler.is_compiling():
        return None
    weight = head.weight
    return (id(weight), weight._version) if isinstance(weight, nn.Parameter) else None


def whole_shape(head: Any) -> tuple[int, int]:
    """[V, H] of a head's weight. PEFT swaps the numbers of features of a copy that is tied to an
    embedding; of a weight that is taken apart these two are what is left.
    """
    weight = head.weight
    whole = type(weight) is nn.Parameter and weight.ndim == 2
    return tuple(weight.shape) if whole else (head.out_features, head.in_features)


def _through_tensor(name: str) -> Callable[..., Any]:
    def method(self: DeferredLogits, *args: Any) -> Any:
        return getattr(self.materialize(), name)(*args)

    method.__name__ = name
    return method


def _in_place(name: str) -> Callable[..., Any]:
    recorded = {"__imul__": "mul", "__itruediv__": "div"}.get(name)

    def method(self: DeferredLogits, other: Any) -> DeferredLogits:
        if recorded is not None and self.tensor is None and is_number(other):
            self.ops = (*self.ops, (recorded, other))
        else:
            getattr(self.materialize(), name)(other)
        return self

    method.__name__ = name
    return method


# Python looks operators up on the class, past __getattr__
IN_PLACE = "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor"
OPERATORS = """
    add radd sub rsub rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul neg pos abs
    invert eq ne lt le gt ge and or xor setitem bool float int index contains array format
"""
for _name in OPERATORS.split():
    setattr(DeferredLogits, f"__{_name}__", _through_tensor(f"__{_name}__"))
for _name in IN_PLACE.split():
    setattr(DeferredLogits, f"__{_name}__", _in_place(f"__{_name}__"))
DeferredLogits.__hash__ = object.__hash__  # type: ignore[method-assign]
