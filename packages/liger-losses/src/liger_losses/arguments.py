"""What the losses of this package check in their arguments and make of them."""

import math

import torch
from liger_core.debug import debugging
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .row_loss import Settings

__all__ = [
    "check_frozen", "check_head", "check_loss", "check_plain", "check_range", "check_target",
    "is_static", "mean_scale",
]  # fmt: skip


def mean_scale(
    target: Tensor, weight: Tensor | None, ignore_index: int, normalizer: float | Tensor | None,
    dtype: torch.dtype, token_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """1 / normalizer as a 0-d tensor; by default the number, or the weights of class and token, of
    the valid tokens, and 1 where there is none whose own weight is not 0.

    Raises ValueError for a normalizer of more than one number.
    """
    if normalizer is None:
        valid = each = target != ignore_index
        if weight is not None:
            in_range = (target >= 0) & (target < weight.numel())
            each = each * in_range * weight[target.where(in_range, 0)].to(dtype)
        if token_weight is not None:
            valid, each = valid & (token_weight != 0), each * token_weight
        return torch.where(valid.any(), each.sum().to(dtype), 1.0).reciprocal()
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1:
            raise ValueError(f"normalizer {tuple(normalizer.shape)} must be one number")
        n = normalizer.detach().to(device=target.device, dtype=dtype)
        return n.reshape(()).reciprocal()
    # as PyTorch divides
    scale = 1.0 / normalizer if normalizer else math.inf
    return torch.full((), scale, dtype=dtype, device=target.device)


def is_static(x: Tensor) -> bool:
    """Whether nothing can be read from the device: in a graph, traced or captured, or of meta."""
    if torch.compiler.is_compiling() or x.is_meta:
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def check_head(name: str, input: Tensor, W: Tensor, target: Tensor, b: Tensor | None) -> None:
    """Raises where hidden states, head and targets do not fit each other."""
    check_plain(name, input, W, b)
    shapes = [tuple(t.shape) for t in (input, W, target)]
    if input.ndim < 1 or W.ndim != 2 or shapes[0] != (*shapes[2], shapes[1][1]):
        raise ValueError(
            f"{name}: input, linear_weight and target must be [..., H], [V, H] and [...], "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    if 0 in shapes[1]:
        raise ValueError(f"{name}: linear_weight {shapes[1]} must be [V, H], V > 0 and H > 0")
    if b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"{name}: linear_bias {tuple(b.shape)} must be [V] with V = {W.shape[0]}")
    for what, tensor in (("linear_weight", W), ("linear_bias", b)):
        if tensor is not None and (tensor.device != input.device or tensor.dtype != input.dtype):
            kind = ValueError if tensor.device != input.device else TypeError
            there = f"{what} {tensor.dtype} on {tensor.device}"
            raise kind(f"{name}: input is {input.dtype} on {input.device}, {there}")
    if not input.is_floating_point():
        raise TypeError(f"{name}: input {input.dtype} must be floating point")


def check_plain(name: str, *tensors: Tensor | None) -> None:
    """Raises for dual tensors and for those of transforms of torch.func, since the operators of
    linear heads would drop their tangents, and gradients of a batch of them.
    """
    if torch.compiler.is_compiling():
        return
    for t in tensors:
        if t is not None and torch._C._functorch.is_functorch_wrapped_tensor(t):
            raise NotImplementedError(f"{name} works under no transform of torch.func")
        if t is not None and unpack_dual(t).tangent is not None:
            raise NotImplementedError(f"{name} has no forward-mode differentiation")


def check_target(
    name: str, target: Tensor, softcap: float | None, logit_scale: float, device: torch.device
) -> None:
    """Raises for targets and numbers that no loss of labels takes."""
    if target.is_floating_point():
        raise TypeError(
            f"{name}: target {target.dtype} must hold class indices; "
            "probabilities are not supported"
        )
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: target {target.dtype} must be int64 or int32")
    if target.device != device:
        raise ValueError(f"{name}: input is on {device}, target on {target.device}")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"{name}: softcap must be positive, got {softcap}")
    if not 0.0 < logit_scale < math.inf:
        raise ValueError(f"{name}: logit_scale must be positive, got {logit_scale}")


def check_range(
    name: str, labels: Tensor, V: int, ignore_index: int | None, what: str = "target"
) -> None:
    """When debugging, raises for a label outside [0, V) that is not `ignore_index`."""
    if is_static(labels) or not debugging():
        return
    wrong = (labels < 0) | (labels >= V)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        ignored = "" if ignore_index is None else f" and not ignore_index {ignore_index}"
        raise ValueError(
            f"{name}: {what}{at} is {labels[tuple(at)].item()}, outside [0, {V}){ignored}"
        )


def check_frozen(name: str, **tensors: Tensor | None) -> None:
    """Raises for a tensor that requires a gradient, which it does not get."""
    for what, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: {what} {tuple(tensor.shape)} requires a gradient and gets none; detach it"
            )


def check_loss(
    name: str, target: Tensor, weight: Tensor | None, reduction: str,
    normalizer: float | Tensor | None, settings: Settings, V: int, device: torch.device,
) -> None:  # fmt: skip
    """Raises for what `cross_entropy` and `linear_cross_entropy` have in common."""
    check_target(name, target, settings.softcap, settings.logit_scale, device)
    if weight is not None and weight.shape != (V,):
        raise ValueError(f"{name}: weight {tuple(weight.shape)} must be [V] with V = {V}")
    if weight is not None and weight.device != device:
        raise ValueError(f"{name}: input is on {device}, weight on {weight.device}")
    check_frozen(name, weight=weight)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', not {reduction!r}")
    if not 0.0 <= settings.label_smoothing <= 1.0:
        raise ValueError(
            f"{name}: label_smoothing must be in [0, 1], got {settings.label_smoothing}"
        )
    if normalizer is not None and reduction != "mean":
        raise ValueError(
            f"{name}: normalizer is what reduction='mean' divides by; reduction is {reduction!r}"
        )
    check_range(name, target, V, settings.ignore_index)
