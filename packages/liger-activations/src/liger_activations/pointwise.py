"""What elementwise kernels share: activations with their slopes, gated units, tiles.

    silu                  act(a) = a * sigmoid(alpha * a)
    gelu                  act(a) = a * Phi(a) = a / 2 * (1 + erf(a / sqrt(2)))
    gelu_tanh             act(a) = a / 2 * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3)))
    relu, relu_squared    act(a) = max(a, 0), max(a, 0)^2
    sigmoid               act(a) = sigmoid(a)

Source: Hendrycks and Gimpel 2016, arXiv:1606.08415 for SiLU and GELU; So et al. 2021,
arXiv:2109.08668 for the squared ReLU.
"""

from typing import Any

import torch
from liger_core.kernels import as_rows
from liger_core.lang import tl, triton
from torch import Tensor

__all__ = ["ACTIVATIONS", "TILE", "act", "act_ref", "flat_rows", "gate_and_up"]

# columns of a tile and warps: 16 bytes of bf16 a thread and operand
TILE = (2048, 8)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu_squared", "sigmoid")


def act_ref(a: Tensor, activation: str, alpha: float = 1.0) -> Tensor:
    F = torch.nn.functional
    if activation == "silu":
        return F.silu(a) if alpha == 1.0 else a * torch.sigmoid(a * alpha)
    if activation == "sigmoid":
        return torch.sigmoid(a)
    if activation in ("relu", "relu_squared"):
        a = F.relu(a)
        # square() is a power, which autocast computes in fp32
        return a if activation == "relu" else a * a
    return F.gelu(a, approximate="tanh" if activation == "gelu_tanh" else "none")


@triton.jit
def act(a, alpha, ACT: tl.constexpr):
    """act(a) and act'(a) of a block in fp32 or fp64. `alpha` is a scalar, or None for 1; "gelu_16"
    is "gelu" to the digits of a 16-bit result.
    """
    if ACT == "relu" or ACT == "relu_squared":
        y = tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)
        slope = tl.where(a <= 0.0, 0.0, 1.0)
        if ACT == "relu_squared":
            slope = 2.0 * y
            y *= y
    elif ACT == "gelu" or ACT == "gelu_16":
        cdf, pdf = _normal(a, ACT == "gelu_16")
        y = a * cdf
        slope = cdf + a * pdf
    else:
        # the tanh GELU is a sigmoid too, since (1 + tanh(u)) / 2 = sigmoid(2 u)
        u = a
        du = 1.0
        if ACT == "gelu_tanh":
            u = 1.5957691216057308 * a * (1.0 + 0.044715 * a * a)
            du = 1.5957691216057308 * (1.0 + 0.134145 * a * a)
        elif alpha is not None:
            du = tl.cast(alpha, a.dtype)
            u = a * du
        s = 1.0 / (1.0 + tl.exp2(u * -1.4426950408889634))
        if ACT == "sigmoid":
            y = s
            slope = s * (1.0 - s)
        else:
            tl.static_assert(ACT == "silu" or ACT == "gelu_tanh")
            y = a * s
            slope = s + a * s * (1.0 - s) * du
    return y, slope


@triton.jit
def _normal(a, SHORT: tl.constexpr):
    """Distribution function and density of the normal distribution.

    In fp32 the lower tail is exp(-a^2 / 2) times a polynomial in 1 / (1 + k |a|), fitted here for
    |a| < 13.5 to a relative 3e-8, or 1.2e-5 if SHORT: its digits do not cancel as those of 1 + erf
    do.
    """
    e = tl.exp2(a * a * -0.7213475204444817)
    if a.dtype == tl.float64:
        cdf = 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))
    elif SHORT:
        t = 1.0 / (1.0 + 0.36 * tl.abs(a))
        p = 0.03386024758 + t * (0.2556557655 + t * -0.09899587184)
        p = 0.0002009846212 + t * (0.1400007606 + t * (0.1692745388 + t * p))
        cdf = tl.where(a < 0.0, e * p, 1.0 - e * p)
    else:
        t = 1.0 / (1.0 + 0.295 * tl.abs(a))
        p = 0.273586363 + t * (-0.18474935 + t * 0.0397185571)
        p = 0.0840686336 + t * (0.16801551 + t * (-0.119785018 + t * p))
        p = 1.81141604e-05 + t * (0.11726886 + t * (0.121858329 + t * p))
        cdf = tl.where(a < 0.0, e * p, 1.0 - e * p)
    return cdf, e * 0.3989422804014327


@triton.jit
def gate_and_up(gate, up, alpha, limit, up_offset, ACT: tl.constexpr, CLAMP: tl.constexpr):
    """act(gate), act'(gate) and up + up_offset, clamped. `limit` and `up_offset` may be None; the
    limit applies to gate "before" the activation or to act(gate) "after" it.
    """
    if limit is not None:
        limit = tl.cast(limit, gate.dtype)
        # not tl.clamp: between -limit and limit it does not compile in fp64 from sm_86 on
        up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
        if CLAMP == "before":
            gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    y, slope = act(gate, alpha, ACT)
    if limit is not None and CLAMP == "after":
        slope *= tl.where(y <= limit, 1.0, 0.0)
        y = tl.minimum(y, limit, propagate_nan=tl.PropagateNan.ALL)
    if up_offset is not None:
        up += tl.cast(up_offset, up.dtype)
    return y, slope, up


def flat_rows(y: Tensor, *tensors: Tensor | None) -> tuple[int, int, list[Any], list[int]]:
    """M and N of y, and the tensors with unit inner stride and their row strides (0 for None): one
    long row where all are contiguous, so that no tile is cut short. Those stay as they are, since a
    kernel asks for no shape and a view costs time.
    """
    # no generator, in which torch 2.14 cannot trace this question
    contiguous = [t is None or t.is_contiguous() for t in tensors]
    if all(contiguous):
        return 1, y.numel(), list(tensors), [0 if t is None else t.numel() for t in tensors]
    M, N = as_rows(y).shape
    rows = [t if t is None else as_rows(t) for t in tensors]
    return M, N, rows, [0 if t is None else t.stride(0) for t in rows]
