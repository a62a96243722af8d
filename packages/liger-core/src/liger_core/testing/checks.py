"""Checks of every memory access that an interpreted kernel makes.

- bounds: loads, stores and atomics stay inside the views passed to the kernel, not merely inside
  their storage: the gap between the rows of a sliced tensor is out of bounds too;
- races: no address is written by two programs of a launch, or written by one and read by another;
- no float atomics, whose sum depends on the order of programs;
- signed sums and products of 32 bits or fewer do not wrap (unsigned ones may, as in hashes).

A launch with fake tensors (`torch._subclasses.FakeTensor`) is a dry run: a few of its programs run
on made-up addresses, loads give zeros and stores go nowhere, but bounds and int32 are checked. So a
launch on 2^31 elements costs no memory.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch._subclasses import FakeTensor

__all__ = ["KernelFault", "Monitor", "watch_integers", "watch_memory"]

# distance between the made-up addresses of two storages of a dry run
_SPACING = 1 << 44
_DRY_PROGRAMS = 5


class KernelFault(AssertionError):
    """An interpreted kernel did what it must not; names kernel, program and tensor."""


class View:
    """The addresses of a tensor's elements."""

    def __init__(self, name: str, tensor: torch.Tensor, base: int) -> None:
        self.name, self.lo, self.itemsize = name, base, tensor.element_size()
        dims = sorted(
            ((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if s and n > 1)
        )
        span, self.dense, nested = 1, True, True
        for stride, size in dims:
            self.dense &= stride == span
            nested &= stride >= span
            span += (size - 1) * stride
        # strides that interleave cannot be told apart by division: only the span is checked
        self.dims = dims[::-1] if nested else []
        self.dense |= not nested
        self.hi = base + span * self.itemsize

    def inside(self, at: Any, size: int) -> Any:
        """For each address whether `size` bytes there belong to the view."""
        ok = (at >= self.lo) & (at + size <= self.hi)
        if self.dense or size != self.itemsize or not ok.any():
            return ok
        rest, odd = np.divmod(at - self.lo, self.itemsize)
        for stride, count in self.dims:
            index, rest = np.divmod(rest, stride)
            ok &= index < count
        return ok & (rest == 0) & (odd == 0)

    def distance(self, at: int) -> int:
        return max(self.lo - at, at - self.hi + self.itemsize, 0)


class Monitor:
    """Watches one launch; a context manager, active for the builder that `watch_memory` changed."""

    active: "Monitor"

    def __init__(self, arguments: dict[str, Any]) -> None:
        tensors = {name: t for name, t in arguments.items() if isinstance(t, torch.Tensor)}
        self.dry = any(isinstance(t, FakeTensor) for t in tensors.values())
        self.storages: dict[int, int] = {}
        self.views = [View(name, t, self.address(t)) for name, t in tensors.items() if t.numel()]
        self.reads: list[tuple[int, Any]] = []
        self.writes: list[tuple[int, Any]] = []
        self.program = 0

    def address(self, tensor: torch.Tensor) -> int:
        if not self.dry:
            return tensor.data_ptr()
        storage = tensor.untyped_storage()._cdata
        base = self.storages.setdefault(storage, _SPACING * (1 + len(self.storages)))
        return base + int(tensor.storage_offset()) * tensor.element_size()

    def programs(self, count: int, rng: Any) -> Iterator[int]:
        """The flat program indices in random order; of a dry run the first, the last and a few."""
        if self.dry and count > _DRY_PROGRAMS:
            order = np.unique([0, count - 1, *rng.integers(count, size=_DRY_PROGRAMS - 2)])
        else:
            order = rng.permutation(count)
        for self.program in order.tolist():
            yield self.program

    def __enter__(self) -> "Monitor":
        Monitor.active = self
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        del Monitor.active
        if kind is None and not self.dry:
            _find_races(self.writes, self.reads)

    def check(self, ptrs: Any, mask: Any, what: str) -> Any:
        """The addresses of the active lanes, all of them inside a view."""
        shape = np.broadcast_shapes(ptrs.data.shape, mask.data.shape)
        at = np.broadcast_to(ptrs.data, shape)[np.broadcast_to(mask.data, shape).astype(bool)].view(
            np.int64
        )
        if not at.size:
            return at
        size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        lo, hi = at.min(), at.max() + size
        if any(v.dense and v.lo <= lo and hi <= v.hi for v in self.views):
            return at
        ok = np.zeros(at.shape, dtype=bool)
        for view in self.views:
            ok |= view.inside(at, size)
        if not ok.all():
            raise KernelFault(self._describe(at[~ok], at.size, what))
        return at

    def _describe(self, bad: Any, lanes: int, what: str) -> str:
        message = f"{what} out of bounds in {bad.size} of {lanes} lanes"
        if not self.views:
            return f"{message}: every tensor of the launch is empty"
        at = int(bad[0])
        view = min(self.views, key=lambda v: v.distance(at))
        element = (at - view.lo) // view.itemsize
        return f"{message}, the first at element {element} from the start of {view.name}"


def _find_races(writes: list[tuple[int, Any]], reads: list[tuple[int, Any]]) -> None:
    if not writes:
        return
    at, owner = _flatten(writes)
    order = np.argsort(at, kind="stable")
    at, owner = at[order], owner[order]
    clash = np.flatnonzero((at[1:] == at[:-1]) & (owner[1:] != owner[:-1]))
    if clash.size:
        i = clash[0]
        raise KernelFault(
            f"race: programs {owner[i]} and {owner[i + 1]} both write address {at[i]:#x}"
        )
    if not reads:
        return
    seen, reader = _flatten(reads)
    index = np.minimum(np.searchsorted(at, seen), at.size - 1)
    clash = np.flatnonzero((at[index] == seen) & (owner[index] != reader))
    if clash.size:
        i = clash[0]
        raise KernelFault(
            f"race: program {reader[i]} reads what program {owner[index[i]]} writes, {seen[i]:#x}"
        )


def _flatten(accesses: list[tuple[int, Any]]) -> tuple[Any, Any]:
    owner = np.repeat([program for program, _ in accesses], [a.size for _, a in accesses])
    return np.concatenate([a for _, a in accesses]), owner


def watch_memory(interpreter: Any, builder: Any) -> None:
    """Route every access of the interpreter's `builder` through the active monitor."""
    old_load, old_store = builder.create_masked_load, builder.create_masked_store
    old_rmw, old_cas = builder.create_atomic_rmw, builder.create_atomic_cas
    handle = interpreter.TensorHandle

    def load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        monitor = Monitor.active
        at = monitor.check(ptrs, mask, "load")
        if monitor.dry:
            dtype = ptrs.get_element_ty()
            zeros = np.zeros(ptrs.data.shape, dtype=interpreter._get_np_dtype(dtype))
            return handle(zeros if other is None else np.where(mask.data, zeros, other.data), dtype)
        monitor.reads.append((monitor.program, at))
        return old_load(self, ptrs, mask, other, *rest)

    def store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        monitor = Monitor.active
        at = monitor.check(ptrs, mask, "store")
        if monitor.dry:
            return None
        monitor.writes.append((monitor.program, at))
        return old_store(self, ptrs, value, mask, *rest)

    def rmw(self: Any, op: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        Monitor.active.check(ptrs, mask, "atomic")
        if op == interpreter._ir.ATOMIC_OP.FADD:
            raise KernelFault("float atomic: the sum depends on the order of programs")
        return value if Monitor.active.dry else old_rmw(self, op, ptrs, value, mask, *rest)

    def cas(self: Any, ptrs: Any, expected: Any, value: Any, *rest: Any) -> Any:
        Monitor.active.check(
            ptrs, handle(np.ones_like(ptrs.data, dtype=bool), interpreter.tl.int1), "atomic"
        )
        return expected if Monitor.active.dry else old_cas(self, ptrs, expected, value, *rest)

    builder.create_masked_load, builder.create_masked_store = load, store
    builder.create_atomic_rmw, builder.create_atomic_cas = rmw, cas


def watch_integers(interpreter: Any, builder: Any) -> None:
    """Report sums, differences and products of signed integers that wrap."""
    signed = (interpreter.tl.int8, interpreter.tl.int16, interpreter.tl.int32)

    def checked(name: str, function: Any) -> Any:
        old = getattr(builder, name)

        def operation(self: Any, lhs: Any, rhs: Any) -> Any:
            out = old(self, lhs, rhs)
            if lhs.dtype.scalar in signed:
                exact = function(lhs.data, rhs.data, dtype=np.int64)
                if not np.array_equal(exact, out.data):
                    value, kind = exact[exact != out.data][0], lhs.dtype.scalar
                    raise KernelFault(f"{kind} overflow in {function.__name__}: {value}")
            return out

        return operation

    for name, function in (
        ("create_add", np.add),
        ("create_sub", np.subtract),
        ("create_mul", np.multiply),
    ):
        setattr(builder, name, checked(name, function))
