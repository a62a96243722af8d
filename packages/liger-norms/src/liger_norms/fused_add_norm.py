"""RMSNorm and LayerNorm of a sum that is returned as well: the residual stream of a decoder.

    s = x + residual;  y = norm(s)

s is rounded to its dtype before the statistics are taken, as by separate operations; the addition
and that of the two gradients cost no pass of their own. Kernels: `row_norm`.

    x, residual, s, y [M, N]; w, b [N] or none; M rows, N columns
    dx = dresidual = ds + the gradient of the norm at s
"""

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .arguments import check, check_beside, eps_of
from .layer_norm import LayerNorm, layer_norm_ref
from .rms_norm import RMSNorm, rms_norm_ref
from .row_norm import RowNormFunction

__all__ = [
    "FusedAddLayerNorm",
    "FusedAddRMSNorm",
    "fused_add_layer_norm",
    "fused_add_layer_norm_ref",
    "fused_add_rms_norm",
    "fused_add_rms_norm_ref",
]


def fused_add_rms_norm_ref(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    offset: float = 0.0,
    cast: str = "after",
) -> tuple[Tensor, Tensor]:
    s = x + residual
    return rms_norm_ref(s, weight, eps, offset=offset, cast=cast), s


def fused_add_layer_norm_ref(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    s = x + residual
    return layer_norm_ref(s, weight, bias, eps, offset=offset), s


def fused_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    offset: float = 0.0,
    cast: str = "after",
) -> tuple[Tensor, Tensor]:
    """RMS normalisation of a sum: s = x + residual, y = `rms_norm`(s); returns (y, s).

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        residual: of the shape of x, any of these dtypes.
        weight, eps, offset, cast: as in `rms_norm`; the dtype of x there is that of the sum here.

    Returns:
        (y, s), each [..., N]; s in the promoted dtype of x and residual.

    Peak memory: y, s and one gradient that x and residual share (one more where their dtypes
    differ), 4 bytes a row and 4 N bytes a program, as in `rms_norm`.

    Raises:
        ValueError, TypeError: as `rms_norm`; ValueError also for x and residual of two shapes.
    """
    check("fused_add_rms_norm", x, {"weight": weight}, eps, offset, cast)
    _check_residual("fused_add_rms_norm", x, residual)
    if not use_kernels(x):
        return fused_add_rms_norm_ref(x, residual, weight, eps, offset=offset, cast=cast)
    return RowNormFunction.apply(x, residual, weight, None, (eps, offset, cast, False))


def fused_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Layer normalisation of a sum: s = x + residual, y = `layer_norm`(s); returns (y, s).

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        residual: of the shape of x, any of these dtypes.
        weight, bias, eps, offset: as in `layer_norm`.

    Returns:
        (y, s), each [..., N] in the promoted dtype of x and residual.

    Peak memory: y, s and one gradient that x and residual share (one more where their dtypes
    differ), and the small terms of `layer_norm`.

    Raises:
        ValueError, TypeError: as `layer_norm`; ValueError also for x and residual of two shapes.
    """
    check("fused_add_layer_norm", x, {"weight": weight, "bias": bias}, eps, offset)
    _check_residual("fused_add_layer_norm", x, residual)
    if not use_kernels(x):
        return fused_add_layer_norm_ref(x, residual, weight, bias, eps, offset=offset)
    return RowNormFunction.apply(x, residual, weight, bias, (eps, offset, "after", True))


def _check_residual(name: str, x: Tensor, residual: Tensor) -> None:
    if residual.shape != x.shape:
        raise ValueError(
            f"{name}: x {tuple(x.shape)} and residual {tuple(residual.shape)} must have one shape"
        )
    check_beside(name, x, "residual", residual)


class FusedAddRMSNorm(RMSNorm):
    """`fused_add_rms_norm` with the parameters of `RMSNorm`; returns (norm of the sum, sum)."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        eps = eps_of(self.eps, torch.promote_types(x.dtype, residual.dtype))
        return fused_add_rms_norm(x, residual, self.weight, eps, offset=self.offset, cast=self.cast)


class FusedAddLayerNorm(LayerNorm):
    """`fused_add_layer_norm` with the parameters of `LayerNorm`; returns (norm of the sum, sum)."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return fused_add_layer_norm(
            x, residual, self.weight, self.bias, self.eps, offset=self.offset
        )
