"""Gated linear units.

    y = act(gate) * (up + up_offset),    act as in `pointwise.py`

A `limit` keeps up in [-limit, limit] and gate, or act(gate), below it. gate and up come as two
tensors, or as one that holds both on its last dimension. The kernel computes in fp32 (fp64 for fp64
inputs) and rounds once. Only gate and up are kept for the backward.

    gate, up, y [M, N]; gate and up in one tensor [M, 2 N]; M rows, N columns
    dup = dy * act(gate);  dgate = dy * (up + up_offset) * act'(gate);  0 beyond the limit

Source: Shazeer 2020, arXiv:2002.05202; OpenAI 2025, arXiv:2508.10925 for the limit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .glu_options import Options, check_options, glu_options
from .pointwise import TILE, act_ref, flat_rows, gate_and_up

__all__ = ["GLU", "GeGLU", "SwiGLU", "geglu", "glu", "glu_bwd", "glu_fwd", "glu_ref", "swiglu"]


def glu_ref(
    gate: Tensor, up: Tensor | None = None, activation: str = "silu", *,
    layout: str = "concatenated", alpha: float = 1.0, limit: float | None = None,
    up_offset: float = 0.0, clamp: str = "before",
) -> Tensor:  # fmt: skip
    gate, up = _parts(gate, layout) if up is None else (gate, up)
    if limit is not None:
        gate, up = gate.clamp(max=limit) if clamp == "before" else gate, up.clamp(-limit, limit)
    y = act_ref(gate, activation, alpha)
    y = y.clamp(max=limit) if limit is not None and clamp == "after" else y
    return y * (up + up_offset if up_offset else up)


@triton.jit
def _load(GATE, UP, OUT, row, tile, stride_gate, stride_up, N, BLOCK_N: tl.constexpr):
    """A tile of gate and of up; interleaved ones (no UP) are loaded as they lie and then parted."""
    if UP is None:
        cols = tile * (2 * BLOCK_N) + tl.arange(0, 2 * BLOCK_N)
        mask = cols < 2 * tl.cast(N, tl.int64)
        pairs = tl.load(GATE + row * stride_gate + cols, mask=mask, other=0.0)
        gate, up = tl.split(tl.reshape(pairs, [BLOCK_N, 2]))
    else:
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        gate = tl.load(GATE + row * stride_gate + cols, mask=cols < N, other=0.0)
        up = tl.load(UP + row * stride_up + cols, mask=cols < N, other=0.0)
    acc = tl.float64 if OUT.dtype.element_ty == tl.float64 else tl.float32
    return gate.to(acc), up.to(acc)


@triton.jit
def _glu_fwd_kernel(
    GATE, UP, Y, stride_gate, stride_up, stride_y, N, alpha, limit, up_offset,
    ACT: tl.constexpr, CLAMP: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = (tl.program_id(0) % tiles).to(tl.int64)
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)

    gate, up = _load(GATE, UP, Y, row, tile, stride_gate, stride_up, N, BLOCK_N)
    y, _, up = gate_and_up(gate, up, alpha, limit, up_offset, ACT, CLAMP)
    tl.store(Y + row * stride_y + cols, (y * up).to(Y.dtype.element_ty), mask=cols < N)


@triton.jit
def _glu_bwd_kernel(
    GATE, UP, DY, DGATE, DUP, Y,
    stride_gate, stride_up, stride_dy, stride_dgate, stride_dup, stride_y, N,
    alpha, limit, up_offset,
    ACT: tl.constexpr, CLAMP: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = (tl.program_id(0) % tiles).to(tl.int64)
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)

    gate, up = _load(GATE, UP, DY, row, tile, stride_gate, stride_up, N, BLOCK_N)
    dy = tl.load(DY + row * stride_dy + cols, mask=cols < N, other=0.0).to(gate.dtype)
    y, slope, factor = gate_and_up(gate, up, alpha, limit, up_offset, ACT, CLAMP)
    if Y is not None:
        # may lie over DY, of which another thread may have loaded what this one stores
        tl.debug_barrier()
        tl.store(Y + row * stride_y + cols, (y * factor).to(Y.dtype.element_ty), mask=cols < N)
    dgate = dy * factor * slope
    dup = dy * y
    if limit is not None:
        limit = tl.cast(limit, gate.dtype)
        dup = tl.where(tl.abs(up) <= limit, dup, 0.0)
        if CLAMP == "before":
            dgate = tl.where(gate <= limit, dgate, 0.0)
    if UP is None:
        cols = tile * (2 * BLOCK_N) + tl.arange(0, 2 * BLOCK_N)
        pairs = tl.reshape(tl.join(dgate, dup), [2 * BLOCK_N]).to(DGATE.dtype.element_ty)
        tl.store(DGATE + row * stride_dgate + cols, pairs, mask=cols < 2 * tl.cast(N, tl.int64))
    elif DGATE is not None:
        dgate = dgate.to(DGATE.dtype.element_ty)
        tl.store(DGATE + row * stride_dgate + cols, dgate, mask=cols < N)
    if DUP is not None:
        tl.store(DUP + row * stride_dup + cols, dup.to(DUP.dtype.element_ty), mask=cols < N)


def _parts(both: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Views of gate and up in one tensor."""
    if layout == "interleaved":
        return both[..., ::2], both[..., 1::2]
    first, second = both.chunk(2, dim=-1)
    return (second, first) if layout == "up_first" else (first, second)


def _launch(kernel: Any, tensors: tuple[Tensor | None, ...], options: Options) -> None:
    """`tensors` begin with gate, up and one of the shape of y."""
    y: Any = tensors[2]
    M, N, rows, strides = flat_rows(y, *tensors)
    block_n, warps = TILE
    _, activation, clamp, *numbers = options
    if activation == "gelu" and y.element_size() == 2:
        activation = "gelu_16"
    launch(
        kernel, (M * ceil_div(N, block_n),), *rows, *strides, N, *numbers,
        num_warps=warps, ACT=activation, CLAMP=clamp, BLOCK_N=block_n,
    )  # fmt: skip


def glu_fwd(
    gate: Tensor, up: Tensor | None, options: Options, dtype: torch.dtype | None = None
) -> Tensor:
    """gate and up, or both in gate -> y, contiguous, in `dtype` or the promoted one."""
    layout = options[0]
    if up is None and layout != "interleaved":
        gate, up = _parts(gate, layout)
    shape = gate.shape if up is not None else (*gate.shape[:-1], gate.shape[-1] // 2)
    dtype = dtype or (gate.dtype if up is None else torch.promote_types(gate.dtype, up.dtype))
    y = torch.empty(shape, dtype=dtype, device=gate.device)
    if y.numel():
        _launch(_glu_fwd_kernel, (gate, up, y), options)
    return y


def glu_bwd(
    dy: Tensor, gate: Tensor, up: Tensor | None, need: Sequence[bool], options: Options,
    y: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """dgate and dup, contiguous, where `need`ed. Into `y`, which may be dy, goes the result of the
    forward once more.
    """
    layout = options[0]
    dgate: Any = gate.new_empty(gate.shape) if need[0] else None
    dup = up.new_empty(up.shape) if up is not None and need[1] else None
    parts = gate, up, dgate, dup
    if up is None and layout != "interleaved":
        parts = *_parts(gate, layout), *_parts(dgate, layout)
    if dy.numel():
        gate, up, *grads = parts
        _launch(_glu_bwd_kernel, (gate, up, dy, *grads, y), options)
    return dgate, dup


class GLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, *options):
        ctx.save_for_backward(gate, up)
        ctx.options = options
        return glu_fwd(gate, up, options)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dgate, dup = glu_bwd(dy, gate, up, ctx.needs_input_grad[:2], ctx.options)
        return dgate, dup, None, None, None, None, None, None


def glu(
    gate: Tensor, up: Tensor | None = None, activation: str = "silu", *,
    layout: str = "concatenated", alpha: float = 1.0, limit: float | None = None,
    up_offset: float = 0.0, clamp: str = "before",
) -> Tensor:  # fmt: skip
    """Gated linear unit: y = act(gate) * (up + up_offset).

    gpt-oss and MiniMax-M3 have alpha=1.702, limit=7.0, up_offset=1.0, the former interleaved;
    DeepSeek-V4 has limit=10.0, Step-3.7 clamp="after"; `torch.nn.functional.glu` is the activation
    "sigmoid" with layout "up_first".

    Args:
        gate: [..., N], or [..., 2 N] holding gate and up when `up` is None. float16, bfloat16,
            float32 or float64.
        up: [..., N] or None.
        activation: "silu", "gelu" (by erf), "gelu_tanh", "relu", "relu_squared" or "sigmoid".
        layout: of gate and up in one tensor: "concatenated" [gate | up], "up_first" [up | gate] or
            "interleaved" [gate_0, up_0, gate_1, ...].
        alpha: of the silu, a * sigmoid(alpha * a); alpha, limit and up_offset are taken as fp32.
        limit: largest gate and absolute value of up. Gradients beyond it are 0, as with
            `torch.clamp`.
        up_offset: added to up.
        clamp: "before" applies the limit to the gate, "after" to act(gate).

    Returns:
        [..., N] in the promoted dtype of gate and up, formed in fp32 (fp64 for float64) and rounded
        once. Peak memory: 3 M N elements, of the result and the two gradients.

    Raises:
        ValueError: shapes or devices that differ, an odd last dimension without `up`, an unknown
            choice, a layout with `up`, an alpha without the silu, a limit that is not positive.
        TypeError: a dtype that is not floating point.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    options = glu_options("glu", gate, up, activation, layout, alpha, limit, up_offset, clamp)
    if not use_kernels(gate):
        return glu_ref(
            gate, up, activation,
            layout=layout, alpha=alpha, limit=limit, up_offset=up_offset, clamp=clamp,
        )  # fmt: skip
    return GLUFunction.apply(gate, up, *options)


def swiglu(gate: Tensor, up: Tensor | None = None, **options: Any) -> Tensor:
    """silu(gate) * up: `glu` with activation "silu", and its options."""
    return glu(gate, up, "silu", **options)


def geglu(
    gate: Tensor, up: Tensor | None = None, approximate: str = "tanh", **options: Any
) -> Tensor:
    """gelu(gate) * up: `glu` with the GELU named as in `torch.nn.functional.gelu`, and its options.

    Raises:
        ValueError: an `approximate` other than "tanh" and "none".
    """
    return glu(gate, up, f"gelu_{approximate}".removesuffix("_none"), **options)


class GLU(torch.nn.Module):
    """`glu` with fixed options; called with gate and up, or with both in one tensor."""

    def __init__(self, activation: str = "silu", **options: Any):
        super().__init__()
        check_options(type(self).__name__, activation, **options)
        self.activation, self.options = activation, options

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return glu(gate, up, self.activation, **self.options)

    def extra_repr(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return ", ".join([repr(self.activation), *options])


class SwiGLU(GLU):
    """`swiglu` as a module."""

    def __init__(self, **options: Any):
        super().__init__("silu", **options)


class GeGLU(GLU):
    """`geglu` as a module."""

    def __init__(self, approximate: str = "tanh", **options: Any):
        super().__init__(f"gelu_{approximate}".removesuffix("_none"), **options)
