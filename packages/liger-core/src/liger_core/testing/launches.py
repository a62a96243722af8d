"""A manifest of every kernel specialisation that tests launch, for `compile_check.py`.

Recorded at the interpreter's launch entry. An entry holds what Triton compiles into the code:
kernel, argument types, 16-byte alignment of pointers and divisibility of integers by 16, constants
(with None and integers equal to 1, which Triton makes constants), warps and stages. `listed` marks
launches at shapes that a spec lists for benchmarks: they may not spill.
"""

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensor

__all__ = ["constexpr_names", "count", "listed", "merge", "paused", "record", "write"]

_entries: dict[str, dict[str, Any]] = {}
_mode = {"listed": False, "paused": False, "count": 0}


@contextlib.contextmanager
def listed() -> Iterator[None]:
    """Mark the launches inside as made at listed shapes."""
    yield from _set("listed")


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Leave the launches inside out of the manifest, e.g. those of random shapes."""
    yield from _set("paused")


def _set(key: str) -> Iterator[None]:
    before, _mode[key] = _mode[key], True
    try:
        yield
    finally:
        _mode[key] = before


def count() -> int:
    """How many launches there were so far in this process."""
    return int(_mode["count"])


def constexpr_names(kernel: Any) -> set[str]:
    """The constexpr parameters of an interpreted kernel."""
    notes = inspect.get_annotations(kernel.fn)
    return {
        name
        for name, note in notes.items()
        if "constexpr" in (note if isinstance(note, str) else note.__name__)
    }


def record(kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Note one launch: every parameter by name, and the rest of the call (num_warps, ...)."""
    _mode["count"] += 1
    if _mode["paused"]:
        return
    fixed = constexpr_names(kernel)
    entry: dict[str, Any] = {
        "module": kernel.fn.__module__,
        "name": kernel.fn.__name__,
        "file": kernel.fn.__code__.co_filename,
    }
    entry |= {
        "signature": {},
        "constants": {},
        "aligned": [],
        "small": [],
        "ones": [],
        "listed": _mode["listed"],
    }
    entry["options"] = {k: v for k, v in sorted(options.items()) if v is not None}
    skip = _unspecialised(kernel)
    for name, value in arguments.items():
        one = type(value) is int and value == 1 and name not in fixed | skip
        entry["ones"] += [name] if one else []
        if one or value is None or name in fixed:
            entry["signature"][name] = "constexpr"
            entry["constants"][name] = _constant(value)
            continue
        entry["signature"][name] = _type(value)
        if isinstance(value, torch.Tensor):
            entry["small"] += [name] if value.untyped_storage().size() < 2**31 else []
        if name not in skip and _multiple_of_16(value):
            entry["aligned"].append(name)
    _entries[json.dumps(entry, sort_keys=True)] = entry


def _unspecialised(kernel: Any) -> set[str]:
    given = kernel.kwargs.get("do_not_specialize") or ()
    return {kernel.arg_names[g] if isinstance(g, int) else g for g in given}


def _multiple_of_16(value: Any) -> bool:
    if isinstance(value, FakeTensor):
        # an allocation on a device starts at a multiple of 256 bytes
        return value.storage_offset() * value.element_size() % 16 == 0
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return type(value) is int and value % 16 == 0


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        import triton.language as tl

        name = "int1" if value.dtype == torch.bool else str(value.dtype).removeprefix("torch.")
        return "*" + tl.core.pointer_type(getattr(tl, name)).element_ty.name.replace(
            "int", "i"
        ).replace("ui", "u")
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"
    if isinstance(value, float):
        return "fp32"
    return f"unsupported {type(value).__name__}"


def _constant(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value).__name__ == "dtype" and hasattr(value, "primitive_bitwidth"):
        return {"dtype": value.name}
    return {"unsupported": repr(value)}


def merge(entries: list[dict[str, Any]]) -> None:
    """Add entries, e.g. those of an xdist worker."""
    _entries.update({json.dumps(e, sort_keys=True): e for e in entries})


def recorded() -> list[dict[str, Any]]:
    """The entries so far."""
    return list(_entries.values())


def write(path: Path) -> None:
    """Write the manifest, together with the entries that the file holds already."""
    if path.exists():
        merge(json.loads(path.read_text()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recorded(), indent=1))
