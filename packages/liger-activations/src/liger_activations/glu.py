"""Gated linear units.

    y = act(gate) * up
    silu:       act(a) = a * sigmoid(a)
    gelu_tanh:  act(a) = a / 2 * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3)))

gate and up come as two tensors, or as one that holds them side by side, [gate | up], on its last
dimension. The kernel computes in fp32 (fp64 for fp64 inputs) and rounds once. Only gate and up are
kept for the backward.

    gate, up, y [M, N]; gate_up [M, 2 N]; M rows, N columns
    dup = dy * act(gate);  dgate = dy * up * act'(gate)

Source: Shazeer 2020, arXiv:2002.05202; Hendrycks and Gimpel 2016, arXiv:1606.08415 for the GELU.
"""

from typing import Any

import torch
from liger_core.device import use_kernels
from liger_core.kernels import as_rows, ceil_div
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["GLU", "GeGLU", "SwiGLU", "geglu", "glu", "glu_ref", "swiglu"]

ACTIVATIONS = ("silu", "gelu_tanh")


def glu_ref(gate: Tensor, up: Tensor | None = None, activation: str = "silu") -> Tensor:
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


@triton.jit
def _act(a, ACT: tl.constexpr):
    """act(a) and act'(a); both activations are a * sigmoid(u), the GELU since (1 + tanh(u)) / 2 =
    sigmoid(2 u).
    """
    if ACT == "silu":
        u = a
        du = 1.0
    else:
        tl.static_assert(ACT == "gelu_tanh")
        u = 1.5957691216057308 * a * (1.0 + 0.044715 * a * a)
        du = 1.5957691216057308 * (1.0 + 0.134145 * a * a)
    s = 1.0 / (1.0 + tl.exp2(u * -1.4426950408889634))
    return a * s, s + a * s * (1.0 - s) * du


@triton.jit
def _glu_fwd_kernel(
    GATE,
    UP,
    Y,
    stride_gate,
    stride_up,
    N,
    ACT: tl.constexpr,
    FP64: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tiles = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    cols = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.float64 if FP64 else tl.float32

    gate = tl.load(GATE + row * stride_gate + cols, mask=cols < N, other=0.0).to(acc)
    up = tl.load(UP + row * stride_up + cols, mask=cols < N, other=0.0).to(acc)
    y, _ = _act(gate, ACT)
    tl.store(Y + row * N + cols, (y * up).to(Y.dtype.element_ty), mask=cols < N)


@triton.jit
def _glu_bwd_kernel(
    GATE, UP, DY, DGATE, DUP, stride_gate, stride_up, stride_dy, stride_dgate, stride_dup, N,
    ACT: tl.constexpr, FP64: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    cols = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.float64 if FP64 else tl.float32

    gate = tl.load(GATE + row * stride_gate + cols, mask=cols < N, other=0.0).to(acc)
    up = tl.load(UP + row * stride_up + cols, mask=cols < N, other=0.0).to(acc)
    dy = tl.load(DY + row * stride_dy + cols, mask=cols < N, other=0.0).to(acc)
    y, slope = _act(gate, ACT)
    if DGATE is not None:
        tl.store(
            DGATE + row * stride_dgate + cols,
            (dy * up * slope).to(DGATE.dtype.element_ty),
            mask=cols < N,
        )
    if DUP is not None:
        tl.store(DUP + row * stride_dup + cols, (dy * y).to(DUP.dtype.element_ty), mask=cols < N)


# columns of a tile and warps: 16 bytes of bf16 a thread and operand
_CONFIG = (2048, 8)


def _rows(*tensors: Tensor | None) -> list[Any]:
    """2-D views with unit inner stride; one long row where all are contiguous, so that no tile is
    cut short.
    """
    if all(t is None or t.is_contiguous() for t in tensors):
        return [t if t is None else t.view(1, -1) for t in tensors]
    return [t if t is None else as_rows(t) for t in tensors]


def glu_fwd(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """gate, up of one shape -> y, contiguous."""
    y = torch.empty(gate.shape, dtype=torch.promote_types(gate.dtype, up.dtype), device=gate.device)
    if y.numel():
        gate, up = _rows(gate, up)
        M, N = gate.shape
        block_n, warps = _CONFIG
        launch(
            _glu_fwd_kernel, (M * ceil_div(N, block_n),),
            gate, up, y, gate.stride(0), up.stride(0), N,
            num_warps=warps, ACT=activation, FP64=y.dtype == torch.float64, BLOCK_N=block_n,
        )  # fmt: skip
    return y


def glu_bwd(
    dy: Tensor, gate: Tensor, up: Tensor, dgate: Tensor | None, dup: Tensor | None, activation: str
) -> None:
    """Writes dgate and dup, each a tensor of the shape of gate with unit inner stride, or None."""
    if not gate.numel():
        return
    dy, gate, up, dgate, dup = _rows(dy, gate, up, dgate, dup)
    M, N = gate.shape
    block_n, warps = _CONFIG
    launch(
        _glu_bwd_kernel, (M * ceil_div(N, block_n),),
        gate, up, dy, dgate, dup, gate.stride(0), up.stride(0), dy.stride(0),
        dgate.stride(0) if dgate is not None else 0, dup.stride(0) if dup is not None else 0, N,
        num_warps=warps, ACT=activation, FP64=dy.dtype == torch.float64, BLOCK_N=block_n,
    )  # fmt: skip


class GLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, activation):
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        if up is None:
            gate, up = gate.chunk(2, dim=-1)
        return glu_fwd(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        if up is None:
            both = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
            gate, up = gate.chunk(2, dim=-1)
            halves = both.chunk(2, dim=-1)
            glu_bwd(dy, gate, up, halves[0], halves[1], ctx.activation)
            return both, None, None
        need_gate, need_up, _ = ctx.needs_input_grad
        dgate = torch.empty_like(gate, memory_format=torch.contiguous_format) if need_gate else None
        dup = torch.empty_like(up, memory_format=torch.contiguous_format) if need_up else None
        glu_bwd(dy, gate, up, dgate, dup, ctx.activation)
        return dgate, dup, None


def glu(gate: Tensor, up: Tensor | None = None, activation: str = "silu") -> Tensor:
    """Gated linear unit: y = act(gate) * up.

    Args:
        gate: [..., N], or [..., 2 N] holding [gate | up] when `up` is None. float16, bfloat16,
            float32 or float64.
        up: [..., N] or None.
        activation: "silu" or "gelu_tanh".

    Returns:
        [..., N] in the promoted dtype of gate and up, formed in fp32 (fp64 for float64) and rounded
        once.

    Raises:
        ValueError: shapes or devices that differ, an odd last dimension without `up`, an unknown
            activation.
        TypeError: a dtype that is not floating point.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    _check(gate, up, activation)
    if not use_kernels(gate):
        return glu_ref(gate, up, activation)
    return GLUFunction.apply(gate, up, activation)


def _check(gate: Tensor, up: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"glu: activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}"
        )
    if up is None:
        if gate.ndim < 1 or gate.shape[-1] % 2:
            raise ValueError(
                f"glu: [gate | up] {tuple(gate.shape)} must have an even last dimension"
            )
    elif gate.shape != up.shape:
        raise ValueError(
            f"glu: gate {tuple(gate.shape)} and up {tuple(up.shape)} must have one shape"
        )
    elif gate.device != up.device:
        raise ValueError(f"glu: gate is on {gate.device}, up on {up.device}")
    if not gate.is_floating_point() or (up is not None and not up.is_floating_point()):
        raise TypeError(
            f"glu: gate {gate.dtype} and up {None if up is None else up.dtype} must be "
            "floating point"
        )


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up: `glu` with activation "silu"."""
    return glu(gate, up, "silu")


def geglu(gate: Tensor, up: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    """gelu(gate) * up: `glu` with the GELU named as in `torch.nn.functional.gelu`; "tanh" is the
    one there is.

    Raises:
        ValueError: another value of `approximate`.
    """
    return glu(gate, up, f"gelu_{approximate}")


class GLU(torch.nn.Module):
    """`glu` with a fixed activation; called with gate and up, or with [gate | up]."""

    def __init__(self, activation: str = "silu"):
        super().__init__()
        self.activation = activation

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return glu(gate, up, self.activation)

    def extra_repr(self) -> str:
        return repr(self.activation)


class SwiGLU(GLU):
    """`swiglu` as a module."""

    def __init__(self):
        super().__init__("silu")


class GeGLU(GLU):
    """`geglu` as a module."""

    def __init__(self, approximate: str = "tanh"):
        super().__init__(f"gelu_{approximate}")
