"""Pieces of a forward that the backward runs again: with the same numbers, and such that gradients
of parameters can be summed over the pieces before anybody hears of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

# torch.func.functional_call is made of it, but calls the module and not a function that reads it
from torch.nn.utils.stateless import _reparametrize_module as reading
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import get_device_states, set_device_states

__all__ = ["Pieces", "autocast", "autocast_state", "reading"]

State = list[tuple[Any, ...]]


def autocast_state(device: str) -> State:
    """That of the moment, as arguments of `torch.autocast`."""
    cached = torch.is_autocast_cache_enabled()
    return [
        (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cached)
        for kind in {device, "cpu"}
        if torch.amp.is_autocast_available(kind)
    ]


def autocast(state: State) -> ExitStack:
    """A context with this state."""
    stack = ExitStack()
    for arguments in state:
        stack.enter_context(torch.autocast(*arguments))
    return stack


class _NoRandomness(TorchDispatchMode):
    """For CUDA graph capture, during which no generator can be set back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func} cannot be run again in a captured CUDA graph")
        return func(*args, **(kwargs or {}))


def _leaves(node: Any) -> Iterator[Tensor]:
    """Of the graph behind a node."""
    nodes, seen = [node], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(parent for parent, _ in node.next_functions)
            if node.name() == "torch::autograd::AccumulateGrad":
                yield node.variable


class Pieces:
    """`function(x, *shared)` on one x after the other; it may read the parameters of `module`.

    `parameters` are those that need gradients, each once; `tensors` are these, then `shared`.
    """

    def __init__(
        self, function: Callable[..., Tensor], module: Module | None, device: torch.device
    ):
        module = Module() if module is None else module
        named = list(module.named_parameters(remove_duplicate=False))
        named = [(name, p) for name, p in named if p.requires_grad]
        self.parameters: list[Tensor] = list({id(p): p for _, p in named}.values())
        # a tied parameter has several names and one place
        place = {id(p): i for i, p in enumerate(self.parameters)}
        self.names = [(name, place[id(p)]) for name, p in named]
        self.function, self.module, self.device = function, module, device.type
        self.autocast = autocast_state(self.device)
        self.captured = self.device == "cuda" and torch.cuda.is_current_stream_capturing()
        self.random: list[Any] = []

    def first(self, x: Tensor, shared: Sequence[Tensor]) -> Tensor:
        """The next piece, with a note of the generators' state."""
        if not self.captured:
            self.random.append((torch.get_rng_state(), *get_device_states(x)))
        with _NoRandomness() if self.captured else nullcontext():
            return self.function(x, *shared)

    def stand_ins(self, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
        """For `again`: the same memory without the hooks, which are for whole gradients."""
        alike = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]
        count = len(self.parameters)
        return [Parameter(t, requires_grad=t.requires_grad) for t in alike[:count]] + alike[count:]

    def again(self, i: int, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The i-th piece once more; the generators then go on as if it had not been."""
        with ExitStack() as stack:
            stand_ins = {name: tensors[place] for name, place in self.names}
            stack.enter_context(reading(self.module, stand_ins))
            if not self.captured:
                cpu, devices, states = self.random[i]
                kind = self.device if devices else "cuda"
                stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
                torch.set_rng_state(cpu)
                set_device_states(devices, states, device_type=kind)
            return self.function(x, *tensors[len(self.parameters) :])

    def grads(
        self, i: int, x: Tensor, tensors: Sequence[Tensor], dy: Tensor, outside: State
    ) -> list[Tensor | None]:
        """Of the i-th piece, by x and by each of `tensors`; None where not needed or without
        effect. Called under autocast as in the forward; differentiates under `outside`.
        """
        asked = [t for t in (x, *tensors) if t.requires_grad]
        with torch.enable_grad():
            y = self.again(i, x, tensors)
        if not y.requires_grad:
            return [None] * (1 + len(tensors))
        for leaf in _leaves(y.grad_fn) if i == 0 else ():
            if not any(leaf is t for t in asked):
                raise ValueError(
                    f"a tensor {tuple(leaf.shape)} is read that requires grad and is neither a "
                    "parameter of `module` nor in `shared`: it would get no gradient"
                )
        with autocast(outside):
            grads = iter(torch.autograd.grad(y, asked, dy, allow_unused=True))
        return [next(grads) if t.requires_grad else None for t in (x, *tensors)]
