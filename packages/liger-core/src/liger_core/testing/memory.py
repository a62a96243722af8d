"""Peak memory of a full pass, counted from storages: on fake tensors it needs no memory.

Operators made with `torch.library.custom_op` run their body there, for the memory that it takes; a
question that fake tensors cannot answer, which elements are not zero, gets the answer all.
"""

import gc
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch._subclasses import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..device import num_sms
from .running import Case, leaves, tensors_of

__all__ = ["assert_peak", "counted_peak", "measured_peak"]

TOLERANCE = 0.02


class _Counter(TorchDispatchMode):
    """Bytes of the storages that were made inside and live; `peak` is their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.outside: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.live:
                self.outside.add(storage._cdata)
        if any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            result = self._pretend(function, args, kwargs or {})
        else:
            result = function(*args, **(kwargs or {}))
        self.live = {key: item for key, item in self.live.items() if not item[0].expired()}
        for storage in _storages(result):
            if storage._cdata not in self.outside:
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result

    def _pretend(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function is torch.ops.aten.nonzero.default:
            (x,) = args
            return torch.zeros((x.numel(), x.ndim), dtype=torch.int64, device=x.device)
        operator = OPDEFS.get(function._schema.name)
        if operator is None:
            return function(*args, **kwargs)
        with self:
            return operator._init_fn(*args, **kwargs)


def _storages(tree: Any) -> list[Any]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def counted_peak(case: Case, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes above inputs and incoming gradients, by what PyTorch allocates."""
    counter = _Counter()
    args, sources = leaves(inputs, case.spec.grad, case.options)
    with counter:
        outputs = [t for t in tensors_of(case.spec.op(**args, **case.options)) if t.requires_grad]
    incoming = [torch.ones_like(t) for t in outputs]
    with counter:
        results = torch.autograd.grad(outputs, [sources[n] for n in case.spec.grad], incoming)
    del results
    return counter.peak


def measured_peak(case: Case, inputs: dict[str, torch.Tensor]) -> int:
    """The same by the statistics of the CUDA allocator."""
    args, sources = leaves(inputs, case.spec.grad, case.options)
    asked = [sources[n] for n in case.spec.grad]
    shapes = tensors_of(case.spec.op(**args, **case.options))
    incoming = [torch.ones_like(t) for t in shapes if t.requires_grad]
    del shapes
    # what a compilation left in reference cycles must not be freed half-way
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    resident = torch.cuda.memory_allocated()
    outputs = [t for t in tensors_of(case.spec.op(**args, **case.options)) if t.requires_grad]
    results = torch.autograd.grad(outputs, asked, incoming)
    peak = torch.cuda.max_memory_allocated() - resident
    del results
    return peak


def assert_peak(case: Case, peak: int, inputs: dict[str, torch.Tensor]) -> None:
    """The spec's formula holds within 2 %."""
    assert case.spec.peak is not None
    sms = num_sms(next(iter(inputs.values())))
    expected = case.spec.peak(case.shape, case.dtype.itemsize, sms, **case.options)
    assert abs(peak - expected) <= TOLERANCE * expected, (
        f"{case}: peak {peak} bytes, by the formula {expected} ({peak / expected:.3f}x)"
    )
