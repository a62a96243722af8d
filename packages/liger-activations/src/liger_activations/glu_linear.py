"""A gated linear unit and the projection after it, without the product between them.

    y = h W^T + b,    h = glu(gate, up)

An MLP keeps three wide tensors for its backward: gate, up, and h for dW. Here h is made again in
the backward, by the kernel that makes dgate and dup: it has gate and up in registers, and stores h
over dh, of which each program reads a tile before it writes it. Bits are those of the forward.

    gate, up, h [M, N]; gate and up in one tensor [M, 2 N]; W [H, N]; b [H] or none; y [M, H]
    M tokens, N intermediate size, H hidden size
    dh = dy W;  dgate, dup as in `glu`;  dW = dy^T h;  db = sum of dy over tokens

Source: Shazeer 2020, arXiv:2002.05202; Chen et al. 2016, arXiv:1604.06174 for recomputation.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from liger_core.autograd import autocast, autocast_dtype, once_differentiable
from liger_core.device import use_kernels
from liger_core.kernels import column_sum
from torch import Tensor
from torch.nn.functional import linear

from .glu import glu_bwd, glu_fwd, glu_ref
from .glu_options import Options, check_options, glu_options

__all__ = ["GLULinear", "glu_linear", "glu_linear_ref"]


def glu_linear_ref(
    gate: Tensor, up: Tensor | None, weight: Tensor, bias: Tensor | None = None, *args, **options
) -> Tensor:
    return linear(glu_ref(gate, up, *args, **options), weight, bias)


def _glu_by_torch(gate: Tensor, up: Tensor | None, options: Options, dtype: torch.dtype) -> Tensor:
    layout, activation, clamp, alpha, limit, up_offset = options
    h = glu_ref(
        gate, up, activation, layout=layout, alpha=1.0 if alpha is None else alpha, limit=limit,
        up_offset=up_offset or 0.0, clamp=clamp,
    )  # fmt: skip
    return h.to(dtype)


def _product(gate: Tensor, up: Tensor | None, options: Options, dtype: torch.dtype) -> Tensor:
    """h, in rows."""
    make = glu_fwd if use_kernels(gate) else _glu_by_torch
    return _in_rows(make(gate, up, options, dtype))


def _in_rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _grads_by_torch(
    dh: Tensor, gate: Tensor, up: Tensor | None, need: Sequence[bool], options: Options
) -> tuple[Any, Any, Tensor]:
    """dgate, dup and h."""

    def product(*leaves: Tensor) -> Tensor:
        a, b = leaves[0] if need[0] else gate, leaves[-1] if need[1] else up
        return _glu_by_torch(a, b, options, dh.dtype)

    leaves = [t for t, n in zip((gate, up), need, strict=True) if n and t is not None]
    if torch.compiler.is_compiling():
        # it traces this, as it does not torch.autograd.grad; hooks of saved tensors forbid it
        h, vjp = torch.func.vjp(product, *leaves)  # type: ignore[misc]
        grads = vjp(dh)
    else:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in leaves]
            h = product(*leaves)
        grads = torch.autograd.grad(h, leaves, dh)
        h = h.detach()
    return grads[0] if need[0] else None, grads[-1] if need[1] else None, h


def glu_linear_fwd(
    gate: Tensor, up: Tensor | None, weight: Tensor, bias: Tensor | None, options: Options
) -> Tensor:
    """Weight and bias in the dtype of the projection -> y in it."""
    h = _product(gate, up, options, weight.dtype)
    y = h.new_empty(*gate.shape[:-1], weight.shape[0])
    # `linear` may return a view: of a Function's result it could not be written in place
    if bias is None:
        torch.mm(h, weight.t(), out=_in_rows(y))
    else:
        torch.addmm(bias, h, weight.t(), out=_in_rows(y))
    return y


def glu_linear_bwd(
    dy: Tensor, gate: Any, up: Tensor | None, weight: Any, need: Sequence[bool], options: Options
) -> tuple[Any, Any, Any, Any]:
    """Gradients of gate, up, weight and bias where `need`ed. Inputs that these do not take may be
    None: gate and up for the bias, weight for all but gate and up.
    """
    dy = _in_rows(dy)
    need_gate, need_up, need_weight, need_bias = need
    dgate = dup = h = None
    if need_gate or need_up:
        dh = (dy @ weight).view(*gate.shape[:-1], weight.shape[1])
        if use_kernels(gate):
            h = dh if need_weight else None
            dgate, dup = glu_bwd(dh, gate, up, need[:2], options, h)
        else:
            dgate, dup, h = _grads_by_torch(dh, gate, up, need[:2], options)
        h = None if h is None else _in_rows(h)
    elif need_weight:
        h = _product(gate, up, options, dy.dtype)
    dweight = None if h is None or not need_weight else dy.t() @ h
    return dgate, dup, dweight, column_sum(dy, dy.dtype) if need_bias else None


class GLULinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, weight, bias, *options):
        need_gate, need_up, need_weight, *_ = ctx.needs_input_grad
        inner = need_gate or need_up
        ctx.options = options
        ctx.save_for_backward(
            *((gate, up) if inner or need_weight else (None, None)), weight if inner else None
        )
        return glu_linear_fwd(gate, up, weight, bias, options)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        need = ctx.needs_input_grad[:4]
        gate, up, weight = ctx.saved_tensors
        grads = glu_linear_bwd(dy, gate, up, weight, need, ctx.options)
        return *grads, None, None, None, None, None, None


def glu_linear(
    gate: Tensor, up: Tensor | None, weight: Tensor, bias: Tensor | None = None,
    activation: str = "silu", *, layout: str = "concatenated", alpha: float = 1.0,
    limit: float | None = None, up_offset: float = 0.0, clamp: str = "before",
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.linear(glu(gate, up), weight, bias)`, the down projection of a gated
    MLP, which keeps gate and up for the backward, but not their product: M N elements less.

    The product is made again in the backward, with the same bits, at M N elements written and
    without another read or buffer. What is frozen costs nothing: no product is made for a frozen
    weight, and no gradient of it for a frozen gate and up.

    Args:
        gate: [..., N], or [..., 2 N] holding gate and up when `up` is None. float16, bfloat16,
            float32 or float64.
        up: [..., N] or None.
        weight: W, [H, N], in the promoted dtype of gate and up; under autocast weight, bias and
            the product are cast as by a linear layer.
        bias: [H] or None, in the dtype of weight.
        activation, layout, alpha, limit, up_offset, clamp: as in `glu`.

    Returns:
        [..., H] in the dtype of weight. The product is formed in fp32 (fp64 for float64) and
        rounded once, to this dtype.

    Peak memory of forward and backward beside the inputs: 3 M N + M H + H N elements, of the two
    gradients, the product over its own gradient, the result and the gradient of weight.

    Raises:
        ValueError: as `glu`; a weight or bias of another shape or device.
        TypeError: a weight or bias of another dtype, or one that is not floating point.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    name = "glu_linear"
    if not gate.ndim:
        raise ValueError(f"{name}: gate {tuple(gate.shape)} must be [..., N]")
    options = glu_options(name, gate, up, activation, layout, alpha, limit, up_offset, clamp)
    dtype = gate.dtype if up is None else torch.promote_types(gate.dtype, up.dtype)
    cast = autocast_dtype(gate.device.type)
    if cast is not None and dtype != torch.float64:
        dtype = cast
        weight, bias = autocast(weight, bias)
    _check_projection(gate, gate.shape[-1] // (2 if up is None else 1), dtype, weight, bias)
    return GLULinearFunction.apply(gate, up, weight, bias, *options)


def _check_projection(
    gate: Tensor, N: int, dtype: torch.dtype, weight: Tensor, bias: Tensor | None
) -> None:
    if weight.ndim != 2 or weight.shape[1] != N:
        raise ValueError(f"glu_linear: weight {tuple(weight.shape)} must be [H, N] with N = {N}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"glu_linear: bias {tuple(bias.shape)} must be [H] with H = {weight.shape[0]}"
        )
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != gate.device:
            raise ValueError(f"glu_linear: gate is on {gate.device}, {what} on {tensor.device}")
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"glu_linear: {what} is {tensor.dtype}, the product {dtype}")


class GLULinear(torch.nn.Linear):
    """`glu_linear` with a weight of its own and fixed options: a Linear that is called with gate
    and up, or with both in one tensor.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`; in_features is N.
        activation, options: as in `glu_linear`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None,
        dtype: Any = None, *, activation: str = "silu", **options: Any,
    ):  # fmt: skip
        super().__init__(in_features, out_features, bias, device, dtype)
        check_options("GLULinear", activation, **options)
        self.activation, self.options = activation, options

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return glu_linear(gate, up, self.weight, self.bias, self.activation, **self.options)

    def extra_repr(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return ", ".join([super().extra_repr(), f"activation={self.activation!r}", *options])
