"""RMSNorm.

    y = x / rms(x) * (w + offset),    rms(x) = sqrt(mean(x^2) + eps)

`cast` says where the result is rounded to the dtype of x besides at its end: "after" nowhere else
(torch, Gemma, OLMo); "before" at x / rms(x), before the multiplication by the weight (Llama, Qwen,
Mistral); "rstd" at 1 / rms(x) (DeepSeek-V4). Kernels: `row_norm`.

    x, y [M, N]; w [N] or none; rstd [M] fp32; M rows, N columns
    g = dy * (w + offset);  dx = rstd * (g - xhat * mean(g * xhat));  dw = sum_rows(dy * xhat)

Source: Zhang and Sennrich 2019, arXiv:1910.07467.
"""

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .arguments import check, check_form, eps_of
from .row_norm import RowNormFunction

__all__ = ["RMSNorm", "rms_norm", "rms_norm_ref"]


def rms_norm_ref(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    offset: float = 0.0,
    cast: str = "after",
) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    rstd = torch.rsqrt(x.to(acc).square().mean(-1, keepdim=True) + eps)
    if cast == "rstd":
        return x * rstd.to(x.dtype)
    xhat = x.to(acc) * rstd
    if weight is None:
        return xhat.to(x.dtype)
    if cast == "before":
        return (weight + offset) * xhat.to(x.dtype)
    return (xhat * (weight.to(acc) + offset)).to(x.dtype)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float | None = 1e-6,
    *,
    offset: float = 0.0,
    cast: str = "after",
) -> Tensor:
    """RMS normalisation of the last dimension: y = x / sqrt(mean(x^2) + eps) * (weight + offset).

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        weight: [N], any of these dtypes, or None for no scaling.
        eps: added to the mean square; None takes torch's choice, the epsilon of fp32 (of fp64 for
            float64 inputs). eps and offset are taken as fp32.
        offset: added to the weight; Gemma stores weight - 1 and uses 1.0.
        cast: "after" rounds once, to the dtype of x, after the multiplication by the weight (torch,
            Gemma, OLMo); "before" rounds x / rms(x) first and returns the promoted dtype of x and
            weight (Llama, Qwen, Mistral); "rstd" rounds 1 / rms(x) first and takes no weight
            (DeepSeek-V4).

    Returns:
        [..., N] in the dtype of x, or the promoted dtype for `cast="before"`. Statistics are fp32
        (fp64 for float64).

    Peak memory: y and dx, 4 bytes a row for rstd, and 4 N bytes a program, of which there are one
    or two a streaming multiprocessor.

    Raises:
        ValueError: shapes that do not fit, an unknown `cast`, a negative eps, tensors on different
            devices.
        TypeError: a dtype that is not floating point.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    eps = eps_of(eps, x.dtype)
    check("rms_norm", x, {"weight": weight}, eps, offset, cast)
    if not use_kernels(x):
        return rms_norm_ref(x, weight, eps, offset=offset, cast=cast)
    return RowNormFunction.apply(x, None, weight, None, (eps, offset, cast, False))


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension, on `rms_norm`; the same parameters and state
    dict.

    Args:
        normalized_shape: N, or a sequence of that one number.
        eps: as in `rms_norm`; 1e-6, that of most decoders, where torch's own default is None.
        elementwise_affine: whether there is a weight.
        offset, cast: as in `rms_norm`.
    """

    def __init__(
        self,
        normalized_shape,
        eps=1e-6,
        elementwise_affine=True,
        device=None,
        dtype=None,
        *,
        offset=0.0,
        cast="after",
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, device=device, dtype=dtype)
        if len(self.normalized_shape) != 1:
            raise ValueError(
                f"RMSNorm: normalized_shape must be one number, got {tuple(self.normalized_shape)}"
            )
        check_form("RMSNorm", elementwise_affine, offset, cast)
        self.offset, self.cast = offset, cast
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Multiply by one: weight 1 - offset."""
        super().reset_parameters()
        # the parent calls this before there is one
        offset: float = getattr(self, "offset", 0.0)
        if self.weight is not None and offset:
            torch.nn.init.constant_(self.weight, 1.0 - offset)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, offset=self.offset, cast=self.cast)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset={self.offset}, cast={self.cast!r}"
