"""The products with the weight of a linear head.

    z = x W^T + b;  dx = dz W;  dW += dz^T x

x, dx [C, H]; W, dW [V, H]; b [V] or none; z, dz [C, V], rows of a `logits_buffer`

A GPU multiplies half-precision matrices two to seven times slower where V is no multiple of eight,
as after one more token in a vocabulary (22.7 ms in place of 3.2 for the logits of 2048 rows, V =
128,257, H = 4096, on an H200; rows filled up with zeros change nothing). So the last V % 8 classes
have products of their own, with zeros for what is missing to eight.
"""

from typing import Any

import torch
import torch.nn.functional as F
from liger_core.device import use_kernels
from torch import Tensor

__all__ = ["HeadProducts", "logits_buffer", "whole_rows"]

_GROUP = 8
# of fewer classes the products are small, and room between rows is not
_MANY = 1024


def logits_buffer(rows: int, V: int, x: Tensor) -> Tensor:
    """An empty [rows, V] for logits of x. Its rows may be longer than V, so that each begins where
    products and row kernels read it fast; what lies between them belongs to nobody.
    """
    width = -(-V // 16) * 16 if _is_aligned(x, V) else V
    return x.new_empty((rows, width))[:, :V]


def whole_rows(z: Tensor, fill: float | None = None) -> Tensor:
    """Rows of a `logits_buffer` with what lies between them, which is set to `fill`."""
    whole, V = z.as_strided((len(z), z.stride(0)), z.stride()), z.shape[1]
    if fill is not None and whole.shape[1] > V:
        whole[:, V:] = fill
    return whole


def _is_aligned(x: Tensor, V: int) -> bool:
    return V >= _MANY and x.element_size() == 2 and use_kernels(x)


class HeadProducts:
    """Products of some rows with a head, those of the last classes apart where that is faster."""

    def __init__(self, x: Tensor, W: Tensor, b: Tensor | None):
        self.W, self.b = W, b
        self.V = self.even = len(W)
        self.last: tuple[Tensor, Tensor | None] | None = None
        if self.V % _GROUP and _is_aligned(x, self.V):
            self.even -= self.V % _GROUP
            missing = -self.V % _GROUP
            last_b = None if b is None else F.pad(b[self.even :], (0, missing))
            self.last = F.pad(W[self.even :], (0, 0, 0, missing)), last_b

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """z of x [C, H], written to out [C, V]."""
        even = self.even
        _linear(x, self.W[:even], None if self.b is None else self.b[:even], out[:, :even])
        if self.last is not None:
            z = _linear(x, *self.last, x.new_empty((len(x), _GROUP)))
            out[:, even:] = z[:, : self.V - even]
        return out

    def input_grad(self, dz: Tensor, out: Tensor) -> Tensor:
        """dx of dz [C, V], written to out [C, H]."""
        if self.last is None:
            return torch.mm(dz, self.W, out=out)
        # first the few, whose sum is rounded at its own size
        torch.mm(self._last_of(dz), self.last[0], out=out)
        return torch.addmm(out, dz[:, : self.even], self.W[: self.even], out=out)

    def add_weight_grad(self, dz: Tensor, x: Tensor, out: Tensor, first: bool) -> None:
        """dW of dz [C, V] and x [C, H], added to out [V, H], or written to it for the `first` rows;
        summed in the dtype of out, fp32 say.
        """
        even = self.even
        _add_product(dz[:, :even].t(), x, out[:even], first)
        if self.last is not None:
            last = out.new_empty((_GROUP, out.shape[1]))
            _add_product(self._last_of(dz).t(), x, last, first=True)
            if first:
                out[even:] = last[: self.V - even]
            else:
                out[even:] += last[: self.V - even]

    def _last_of(self, dz: Tensor) -> Tensor:
        return F.pad(dz[:, self.even :], (0, -self.V % _GROUP))


def _linear(x: Tensor, W: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
    if b is None:
        return torch.mm(x, W.t(), out=out)
    return torch.addmm(b, x, W.t(), out=out)


def _add_product(a: Tensor, x: Tensor, out: Tensor, first: bool) -> None:
    """out = a x (+ out), half-precision operands summed in the dtype of out."""
    kind: dict[str, Any] = {}
    if out.dtype != x.dtype and x.is_cuda:
        kind["out_dtype"] = out.dtype
    elif out.dtype != x.dtype:
        # with out= autocast leaves the copies in fp32
        a, x = a.to(out.dtype), x.to(out.dtype)
    if first:
        torch.mm(a, x, out=out, **kind)
    else:
        torch.addmm(out, a, x, out=out, **kind)
