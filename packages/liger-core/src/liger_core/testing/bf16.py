"""bfloat16 for Triton's interpreter, which computes on its bit patterns as uint16."""

from typing import Any

import numpy as np

__all__ = ["from_bits", "repair_bf16", "to_bits"]


def to_bits(values: Any) -> Any:
    """Round to bfloat16, to nearest even, and return the bit patterns (uint16)."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def from_bits(bits: Any) -> Any:
    """The fp32 values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def repair_bf16(interpreter: Any, builder: Any) -> None:
    """Make what the interpreter's `builder` computes on bf16 work on values."""
    tl, handle = interpreter.tl, interpreter.TensorHandle
    raw = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
    old = {
        name: getattr(builder, name)
        for name in ("cast_impl", "binary_op", "unary_op", "ternary_op", "create_fma")
    }
    old_dot, old_fp_to_fp = builder.create_dot, builder.create_fp_to_fp

    def wide(x: Any) -> Any:
        return handle(from_bits(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def narrow(data: Any) -> Any:
        return handle(data, tl.int1) if data.dtype == bool else handle(to_bits(data), tl.bfloat16)

    def is_bf16(x: Any) -> bool:
        return x.dtype.scalar == tl.bfloat16

    def cast_impl(self: Any, src: Any, dst: Any) -> Any:
        if dst.scalar != tl.bfloat16:
            return old["cast_impl"](self, wide(src), dst)
        # fp64 -> bf16 goes through fp32 here and in compiled code
        return src if is_bf16(src) else narrow(src.data.astype(np.float32))

    def fp_to_fp(self: Any, src: Any, dst: Any, rounding: Any) -> Any:
        if dst.scalar == tl.bfloat16 and rounding in (None, interpreter._ir.ROUNDING_MODE.RTNE):
            return cast_impl(self, src, dst)
        return old_fp_to_fp(self, wide(src), dst, rounding)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not is_bf16(lhs) or op in raw:
            return old["binary_op"](self, lhs, rhs, op)
        return narrow(op(from_bits(lhs.data), from_bits(rhs.data)))

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return narrow(op(from_bits(arg.data))) if is_bf16(arg) else old["unary_op"](self, arg, op)

    def ternary_op(self: Any, first: Any, second: Any, third: Any, op: Any) -> Any:
        # a select moves bit patterns and needs no values
        if not is_bf16(third) or op is np.where:
            return old["ternary_op"](self, first, second, third, op)
        return narrow(op(wide(first).data, wide(second).data, wide(third).data))

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_bf16(z):
            return old["create_fma"](self, x, y, z)
        product = np.multiply(wide(x).data, wide(y).data, dtype=np.float64)
        return narrow((product + wide(z).data).astype(np.float32))

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return old_dot(self, wide(a), wide(b), d, *rest)

    def get_bf16(self: Any, value: float) -> Any:
        return narrow(np.array([value], dtype=np.float32))

    for function in (cast_impl, binary_op, unary_op, ternary_op, create_fma, create_dot, get_bf16):
        setattr(builder, function.__name__, function)
    builder.create_fp_to_fp = fp_to_fp
