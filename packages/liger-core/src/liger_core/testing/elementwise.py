"""What Triton's interpreter lacks besides bf16: libdevice, inline assembly, tf32 in dot."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["repair_elementwise"]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tanh": np.tanh,
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "log1p": np.log1p,
    "expm1": np.expm1,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "pow": np.power,
    "atan": np.arctan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "sin": np.sin,
    "cos": np.cos,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "rint": np.rint,
}
_INSTRUCTIONS = {
    "tanh": "tanh",
    "ex2": "exp2",
    "lg2": "log2",
    "rsqrt": "rsqrt",
    "sqrt": "sqrt",
    "sin": "sin",
    "cos": "cos",
}


def repair_elementwise(interpreter: Any, builder: Any) -> None:
    """Give the interpreter's `builder` and libdevice the functions above."""
    tl, handle = interpreter.tl, interpreter.TensorHandle

    def apply(name: str, args: Any, dtype: Any) -> Any:
        data = _FUNCTIONS[name](*(a.data for a in args))
        return handle(np.asarray(data).astype(interpreter._get_np_dtype(dtype)), dtype.scalar)

    def extern(
        self: Any, library: str, path: str, symbol: str, args: Any, dtype: Any, pure: bool
    ) -> Any:
        # __nv_tanhf, __nv_tanh, __ocml_tanh_f32
        name = re.sub(r"^__(nv|ocml)_|_f\d+$", "", symbol)
        name = name if name in _FUNCTIONS else name.removesuffix("f")
        if name not in _FUNCTIONS:
            raise NotImplementedError(f"{symbol} has no model in liger_core.testing.elementwise")
        return apply(name, args, dtype)

    def inline_asm(
        self: Any, text: str, constraints: str, values: Any, dtypes: Any, pure: bool, pack: int
    ) -> Any:
        match = re.fullmatch(r"\s*(\w+)\.approx(?:\.ftz)?\.f32\s+\$0\s*,\s*\$1\s*;?\s*", text)
        if not match or match[1] not in _INSTRUCTIONS:
            raise NotImplementedError(
                f"inline assembly {text!r} has no model in liger_core.testing.elementwise"
            )
        dtype = dtypes[0] if isinstance(dtypes, (list, tuple)) else dtypes
        return _Call(apply(_INSTRUCTIONS[match[1]], values, dtype))

    old_dot = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        if precision == interpreter._ir.INPUT_PRECISION.TF32:
            a, b = (
                handle(_tf32(x.data), x.dtype) if x.dtype.scalar == tl.float32 else x
                for x in (a, b)
            )
        return old_dot(self, a, b, d, precision, *rest)

    builder.create_extern_elementwise = extern
    builder.create_inline_asm = inline_asm
    builder.create_dot = create_dot
    _fill_libdevice(interpreter)


class _Call:
    """The result of inline assembly, in the shape of the real builder's operation."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def get_result(self, index: int) -> Any:
        assert index == 0
        return self.result


def _tf32(data: Any) -> Any:
    bits = np.ascontiguousarray(data).view(np.uint32)
    rounded = (bits + np.uint32(0x0FFF) + ((bits >> 13) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(data), rounded.view(np.float32), data)


def _fill_libdevice(interpreter: Any) -> None:
    import triton.language.extra.libdevice as libdevice

    def make(function: Any) -> Any:
        def call(*args: Any, _semantic: Any = None) -> Any:
            tensors = [interpreter.interpreter_semantic.to_tensor(a) for a in args]
            x = tensors[0]
            data = np.asarray(function(*(t.handle.data for t in tensors))).astype(
                x.handle.data.dtype
            )
            return interpreter.tl.core.tensor(
                interpreter.TensorHandle(data, x.handle.dtype), x.type
            )

        return call

    for name, function in _FUNCTIONS.items():
        if hasattr(libdevice, name):
            setattr(libdevice, name, make(function))
