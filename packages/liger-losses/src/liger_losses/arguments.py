"""What the losses of this package check in their arguments and make of them."""

import torch
from torch import Tensor

from .row_loss import Settings

__all__ = ["check_loss", "mean_scale"]


def mean_scale(
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    normalizer: float | Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """1 / normalizer as a 0-d tensor; by default the number, or the class weights, of the valid
    tokens, and 1 of none.
    """
    if normalizer is None:
        valid = target != ignore_index
        if weight is not None:
            in_range = valid & (target >= 0) & (target < weight.numel())
            total = (weight[target.where(in_range, 0)] * in_range).sum(dtype=dtype)
        else:
            total = valid.sum().to(dtype)
        return torch.where(total == 0, 1.0, total).reciprocal()
    if isinstance(normalizer, Tensor):
        return normalizer.to(device=target.device, dtype=dtype).reciprocal()
    return torch.full((), 1.0 / normalizer, dtype=dtype, device=target.device)


def check_loss(
    name: str,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    settings: Settings,
    V: int,
    device: torch.device,
) -> None:
    """Raises for what `cross_entropy` and `linear_cross_entropy` have in common."""
    if target.is_floating_point():
        raise TypeError(
            f"{name}: target {target.dtype} must hold class indices; "
            "probabilities are not supported"
        )
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: target {target.dtype} must be int64 or int32")
    if weight is not None and weight.shape != (V,):
        raise ValueError(f"{name}: weight {tuple(weight.shape)} must be [V] with V = {V}")
    for what, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name}: input is on {device}, {what} on {tensor.device}")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', not {reduction!r}")
    if not 0.0 <= settings.label_smoothing <= 1.0:
        raise ValueError(
            f"{name}: label_smoothing must be in [0, 1], got {settings.label_smoothing}"
        )
    if settings.softcap is not None and settings.softcap <= 0.0:
        raise ValueError(f"{name}: softcap must be positive, got {settings.softcap}")
    if settings.logit_scale <= 0.0:
        raise ValueError(f"{name}: logit_scale must be positive, got {settings.logit_scale}")
