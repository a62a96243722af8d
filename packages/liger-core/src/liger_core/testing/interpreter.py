"""Triton's CPU interpreter, repaired until its results can be believed, and checking while it runs.

Repairs (Triton 3.6 to 3.9): bf16 casts round to nearest even, bf16 arithmetic works on values and
not on bit patterns; `tl.dot` multiplies bf16 exactly and rounds fp32 operands to tf32 where the GPU
would; a Python float argument is an fp32 scalar; the variable of `range` and `tl.range` has the
integer type of its bounds, as in compiled code, so an int32 product with it wraps where it would on
the GPU; libdevice functions and one-instruction inline assembly exist; `tl.device_assert` fires.
Checks: see `checks.py`. Any of them raises `KernelFault` at the offending program.

Not modelled: warps, shared memory, races inside one program, the error of fast-math instructions,
ptxas.
"""

import ast
import dataclasses
import inspect
import math
import os
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from . import launches
from .bf16 import repair_bf16
from .checks import KernelFault, Monitor, watch_integers, watch_memory
from .elementwise import repair_elementwise

__all__ = ["KernelFault", "install", "interpreting", "program_order"]

# programs that CUDA launches in the second and third dimension of a grid
_MOST_BEYOND_FIRST = 65_535
_state = {"installed": False, "rng": np.random.default_rng(0)}


def interpreting() -> bool:
    """Whether kernels of this process run in the repaired interpreter."""
    return bool(_state["installed"])


def program_order(seed: int) -> None:
    """Reseed the order in which programs run; every launch draws a new permutation."""
    _state["rng"] = np.random.default_rng(seed)


def install() -> None:
    """Repair the interpreter of this process, once.

    `TRITON_INTERPRET=1` must have been set before the first kernel was decorated.

    Raises:
        RuntimeError: kernels of this process are compiled, not interpreted.
    """
    if _state["installed"]:
        return
    from triton import knobs
    from triton.runtime import interpreter

    if not knobs.runtime.interpret:
        raise RuntimeError(
            "set TRITON_INTERPRET=1 before Python starts "
            f"(now {os.environ.get('TRITON_INTERPRET')!r})"
        )
    builder = interpreter.InterpreterBuilder
    # debug arms tl.device_assert; watch_integers replaces Triton's own, slow test of int32 sums
    options = dataclasses.replace(
        interpreter.interpreter_builder.options, debug=True, sanitize_overflow=False
    )
    interpreter.interpreter_builder.options = options
    repair_bf16(interpreter, builder)
    repair_elementwise(interpreter, builder)
    watch_integers(interpreter, builder)
    watch_memory(interpreter, builder)
    _repair_loops(interpreter)
    _patch_language(interpreter)
    _replace_launch(interpreter)
    _state["installed"] = True


def _patch_language(interpreter: Any) -> None:
    """Put the interpreter's functions into triton.language once, not at every launch and call."""
    import triton.language as tl

    stub = types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core})
    interpreter._patch_lang(stub)
    tl.range = tl.core.range = _typed_range
    # numpy 2.4 refuses to turn the one-element array of a scalar into an index
    tl.tensor.__index__ = lambda self: int(self.handle.data.item())
    tl.tensor.__bool__ = lambda self: (
        bool(self.handle.data.item()) if self.handle.data.size == 1 else True
    )


def _repair_loops(interpreter: Any) -> None:
    """Give the variable of `for i in range(...)` the type that it has in compiled code."""

    def visit_For(self: ast.NodeTransformer, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        call = node.iter
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and call.func.id == "range"
        ):
            call.func.id = "_typed_range"
        return node

    interpreter.ASTTransformer.visit_For = visit_For
    # the rewriter copies the globals of the interpreter module into those of the kernel
    interpreter._typed_range = _typed_range


def _typed_range(first: Any, last: Any = None, step: Any = 1, **hints: object) -> Iterator[Any]:
    import triton.language as tl
    from triton.runtime import interpreter

    first, last = (0, first) if last is None else (first, last)
    bounds = [interpreter.interpreter_semantic.to_tensor(b) for b in (first, last, step)]
    dtype = tl.int64 if any(b.dtype == tl.int64 for b in bounds) else tl.int32
    values = range(*(int(b.handle.data.item()) for b in bounds))
    # a dry run looks for offsets that leave a tensor or int32: the ends of a loop show them
    dry = Monitor.active is not None and Monitor.active.dry and len(values) > 4
    for i in (*values[:2], *values[-2:]) if dry else values:
        yield _scalar(interpreter, i, dtype)


def _scalar(interpreter: Any, value: Any, dtype: Any) -> Any:
    data = np.array([value]).astype(interpreter._get_np_dtype(dtype))
    return interpreter.tl.tensor(interpreter.TensorHandle(data, dtype), dtype)


def _argument(interpreter: Any, value: Any, address: Callable[[torch.Tensor], int]) -> Any:
    """A run-time argument of a launch as the kernel sees it."""
    tl = interpreter.tl
    if isinstance(value, torch.Tensor):
        element = (
            tl.int1
            if value.dtype == torch.bool
            else getattr(tl, str(value.dtype).removeprefix("torch."))
        )
        return _scalar(interpreter, np.uint64(address(value)), tl.pointer_type(element))
    if isinstance(value, float):
        return _scalar(interpreter, value, tl.float32)
    return interpreter._implicit_cvt(value)


def _replace_launch(interpreter: Any) -> None:
    def call_device_function(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        if warmup:
            return
        for hook in self.pre_run_hooks:
            hook(*args, **kwargs)
        options = {name: kwargs.pop(name) for name in list(kwargs) if name not in self.arg_names}
        arguments = inspect.getcallargs(self.fn, *args, **kwargs)
        grid = (*(grid(arguments) if callable(grid) else grid), 1, 1)[:3]
        launches.record(self, arguments, options)
        _execute(interpreter, self, arguments, tuple(int(n) for n in grid))

    interpreter.InterpretedFunction.__call__ = call_device_function
    interpreter.InterpretedFunction.run = run


def _execute(
    interpreter: Any, kernel: Any, arguments: dict[str, Any], grid: tuple[int, ...]
) -> None:
    name, body = kernel.fn.__name__, kernel.rewrite()
    if max(grid[1:]) > _MOST_BEYOND_FIRST:
        raise KernelFault(f"{name}: CUDA does not launch a grid {grid}")
    monitor = Monitor(arguments)
    constants = launches.constexpr_names(kernel)
    values = {
        k: v if k in constants else _argument(interpreter, v, monitor.address)
        for k, v in arguments.items()
    }
    builder = interpreter.interpreter_builder
    builder.set_grid_dim(*grid)
    with np.errstate(all="ignore"), warnings.catch_warnings(), monitor:
        warnings.simplefilter("ignore", RuntimeWarning)
        for flat in monitor.programs(math.prod(grid), _state["rng"]):
            index = np.unravel_index(flat, grid)
            builder.set_grid_idx(*map(int, index))
            try:
                body(**values)
            except KernelFault as fault:
                raise KernelFault(f"{name}, program {builder.grid_idx}: {fault}") from None
            except (
                AssertionError,
                IndexError,
                TypeError,
                ValueError,
                NotImplementedError,
            ) as error:
                raise KernelFault(f"{name}, program {builder.grid_idx}: {error!r}") from error
