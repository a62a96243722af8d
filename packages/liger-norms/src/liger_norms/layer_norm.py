"""LayerNorm.

    y = (x - mean(x)) / sqrt(var(x) + eps) * (w + offset) + b

with the variance of the whole row (divided by N), from centred values. Kernels: `row_norm`.

    x, y [M, N]; w, b [N], each or none; mean, rstd [M] fp32; M rows, N columns
    g = dy * (w + offset);  dx = rstd * (g - mean(g) - xhat * mean(g * xhat))
    dw = sum_rows(dy * xhat);  db = sum_rows(dy)

Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
"""

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .arguments import check, check_form
from .row_norm import RowNormFunction

__all__ = ["LayerNorm", "layer_norm", "layer_norm_ref"]


def layer_norm_ref(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    w = None if weight is None else weight.to(acc) + offset
    b = None if bias is None else bias.to(acc)
    return torch.nn.functional.layer_norm(x.to(acc), x.shape[-1:], w, b, eps).to(x.dtype)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
) -> Tensor:
    """Layer normalisation of the last dimension: (x - mean) / sqrt(var + eps) * weight + bias.

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        weight: [N], any of these dtypes, or None.
        bias: [N] likewise, with or without a weight.
        eps: added to the variance.
        offset: added to the weight; Nemotron stores weight - 1 and uses 1.0.

    Returns:
        [..., N] in the dtype of x, formed in fp32 (fp64 for float64) and rounded once.

    Peak memory: y and dx, 8 bytes a row for mean and rstd, and 4 N bytes for each of weight and
    bias a program, of which there are one or two a streaming multiprocessor.

    Raises:
        ValueError: shapes that do not fit, a negative eps, tensors on different devices.
        TypeError: a dtype that is not floating point.

    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    check("layer_norm", x, {"weight": weight, "bias": bias}, eps, offset)
    if not use_kernels(x):
        return layer_norm_ref(x, weight, bias, eps, offset=offset)
    return RowNormFunction.apply(x, None, weight, bias, (eps, offset, "after", True))


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dimension, on `layer_norm`; the same parameters and state
    dict.

    Args:
        normalized_shape: N, or a sequence of that one number.
        eps, elementwise_affine, bias: as in the parent.
        offset: as in `layer_norm`.
    """

    def __init__(
        self,
        normalized_shape,
        eps=1e-5,
        elementwise_affine=True,
        bias=True,
        device=None,
        dtype=None,
        *,
        offset=0.0,
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        if len(self.normalized_shape) != 1:
            raise ValueError(
                f"LayerNorm: normalized_shape must be one number, got {self.normalized_shape}"
            )
        check_form("LayerNorm", elementwise_affine, offset, "after")
        self.offset = offset
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Multiply by one: weight 1 - offset; bias 0."""
        super().reset_parameters()
        # the parent calls this before there is one
        offset: float = getattr(self, "offset", 0.0)
        if self.weight is not None and offset:
            torch.nn.init.constant_(self.weight, 1.0 - offset)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, offset=self.offset)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset={self.offset}"
