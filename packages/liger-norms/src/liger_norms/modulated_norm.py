"""RMSNorm and LayerNorm with a scale and a shift of their own for each sample (AdaLN).

    y = norm(x) * (1 + scale) + shift

A sample is a run of consecutive rows, so (1 + scale) * w is the weight of a group of rows and shift
its bias: the kernels are those of `row_norm`, and the gradients of scale, shift and w follow from
those of the groups' weights.

    x, y [..., N], M rows; scale, shift [G, N], one row for each M / G rows of x; w, b [N] or none

Source: Peebles and Xie 2022, arXiv:2212.09748 (AdaLN of DiT); Perez et al. 2017, arXiv:1709.07871.
"""

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .arguments import check, check_beside, eps_of
from .layer_norm import LayerNorm, layer_norm_ref
from .rms_norm import RMSNorm, rms_norm_ref
from .row_norm import RowNormFunction

__all__ = [
    "ModulatedLayerNorm",
    "ModulatedRMSNorm",
    "modulated_layer_norm",
    "modulated_layer_norm_ref",
    "modulated_rms_norm",
    "modulated_rms_norm_ref",
]


def modulated_rms_norm_ref(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    y = rms_norm_ref(x.to(acc), weight, eps)
    y = y * (1.0 + _spread(scale, x).to(acc))
    return (y if shift is None else y + _spread(shift, x).to(acc)).to(x.dtype)


def modulated_layer_norm_ref(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    y = layer_norm_ref(x.to(acc), weight, bias, eps)
    y = y * (1.0 + _spread(scale, x).to(acc))
    return (y if shift is None else y + _spread(shift, x).to(acc)).to(x.dtype)


def modulated_rms_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """RMS normalisation, modulated: y = x / sqrt(mean(x^2) + eps) * weight * (1 + scale) + shift.

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        scale: [N], or [B, N], [B, 1, N] for x [B, T, N] (each sample its own), or up to the shape
            of x (each row its own); any of these dtypes.
        shift: likewise, or None.
        weight: [N] or None.
        eps: added to the mean square.

    Returns:
        [..., N] in the dtype of x, formed in fp32 (fp64 for float64) and rounded once.

    Peak memory: y and dx, 4 bytes a row, 4 N bytes for each of scale and shift a program (one for
    some 64 rows of a sample, as many as the device holds at most), and for each sample what scale,
    shift and their product with the weight take.

    Raises:
        ValueError: shapes that do not fit, a negative eps, tensors on different devices.
        TypeError: a dtype that is not floating point.

    Source: Peebles and Xie 2022, arXiv:2212.09748.
    """
    name = "modulated_rms_norm"
    check(name, x, {"weight": weight}, eps)
    _check_modulation(name, x, scale, shift)
    if not use_kernels(x):
        return modulated_rms_norm_ref(x, scale, shift, weight, eps)
    w, b, offset = _group_weights(x, scale, shift, weight, None)
    return RowNormFunction.apply(x, None, w, b, (eps, offset, "after", False))


def modulated_layer_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation, modulated: y = layer_norm(x, weight, bias) * (1 + scale) + shift.

    Args:
        x, scale, shift: as in `modulated_rms_norm`.
        weight, bias: [N] or None, as in `layer_norm`.
        eps: added to the variance.

    Returns:
        [..., N] in the dtype of x, formed in fp32 (fp64 for float64) and rounded once.

    Peak memory: as `modulated_rms_norm`, and 4 bytes a row more.

    Raises:
        ValueError, TypeError: as `modulated_rms_norm`.

    Source: Peebles and Xie 2022, arXiv:2212.09748.
    """
    name = "modulated_layer_norm"
    check(name, x, {"weight": weight, "bias": bias}, eps)
    _check_modulation(name, x, scale, shift)
    if not use_kernels(x):
        return modulated_layer_norm_ref(x, scale, shift, weight, bias, eps)
    w, b, offset = _group_weights(x, scale, shift, weight, bias)
    return RowNormFunction.apply(x, None, w, b, (eps, offset, "after", True))


def _spread(t: Tensor, x: Tensor) -> Tensor:
    """[B, N] beside x [B, T, N] becomes [B, 1, N]."""
    return t.reshape(*t.shape[:-1], *[1] * (x.ndim - t.ndim), t.shape[-1])


def _group_weights(
    x: Tensor, scale: Tensor, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, float]:
    """Weight and bias [G, N] of the groups of rows, and the offset of the weight.

    Products of the small tensors are formed by PyTorch, whose autograd splits their gradient.
    """
    acc = torch.promote_types(x.dtype, torch.float32)
    given = [scale] if shift is None else [scale, shift]
    # rows of a group follow each other: up to the last dimension that varies all are whole
    varies = [i + 1 for t in given for i, n in enumerate(_spread(t, x).shape[:-1]) if n != 1]
    last = max(varies, default=0)
    shape = (*x.shape[:last], *[1] * (x.ndim - 1 - last), x.shape[-1])
    N = x.shape[-1]

    def grouped(t: Tensor) -> Tensor:
        return _spread(t, x).expand(shape).reshape(-1, N)

    b = None if shift is None else grouped(shift)
    if weight is None and bias is None:
        return grouped(scale), b, 1.0
    factor = 1.0 + grouped(scale).to(acc)
    if bias is not None:
        b = bias.to(acc) * factor + (0.0 if b is None else b.to(acc))
    return factor if weight is None else factor * weight.to(acc), b, 0.0


def _check_modulation(name: str, x: Tensor, scale: Tensor, shift: Tensor | None) -> None:
    for key, t in (("scale", scale), ("shift", shift)):
        if t is None:
            continue
        fits = 1 <= t.ndim <= x.ndim and t.shape[-1] == x.shape[-1]
        # no `n in (1, size)`, which Dynamo gets wrong of traced sizes
        if not fits or any(
            n != 1 and n != size for n, size in zip(_spread(t, x).shape, x.shape, strict=True)
        ):
            raise ValueError(
                f"{name}: {key} {tuple(t.shape)} must be [N], [B, N] or broadcast to x "
                f"{tuple(x.shape)}"
            )
        check_beside(name, x, key, t)


class ModulatedRMSNorm(RMSNorm):
    """`modulated_rms_norm` with the weight of `torch.nn.RMSNorm`; called with x, scale, shift."""

    def __init__(
        self, normalized_shape, eps=1e-6, elementwise_affine=True, device=None, dtype=None
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:  # type: ignore[override]
        eps = eps_of(self.eps, x.dtype)
        return modulated_rms_norm(x, scale, shift, self.weight, eps)

    # without the options that this norm does not have
    extra_repr = torch.nn.RMSNorm.extra_repr


class ModulatedLayerNorm(LayerNorm):
    """`modulated_layer_norm` with the parameters of `torch.nn.LayerNorm`; called with x, scale,
    shift.
    """

    def __init__(
        self,
        normalized_shape,
        eps=1e-5,
        elementwise_affine=True,
        bias=True,
        device=None,
        dtype=None,
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return modulated_layer_norm(x, scale, shift, self.weight, self.bias, self.eps)

    extra_repr = torch.nn.LayerNorm.extra_repr
