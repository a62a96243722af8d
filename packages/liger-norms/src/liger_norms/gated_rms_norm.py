"""RMSNorm with a gate, over whole rows or over groups of their columns.

    norm before gate:  y = u / rms(u) * w * act(gate),  u = x
    gate before norm:  y = u / rms(u) * w,              u = x * act(gate)

rms(u) = sqrt(mean(u^2) + eps) over each group of K columns; act is silu or sigmoid. `cast` says
when u / rms(u) (uhat) is rounded to the dtype of x: "after" all products, or "before" that with the
weight. Kernels: `gated_row_norm`.

    x, gate, y [M, N]; w [N] or none; rstd [M, G]; M rows, N = G K columns, G groups
    e = dy * act(gate) if the norm comes first, else dy;  g = e * w
    du = rstd * (g - uhat * mean(g * uhat));  dw = sum_rows(e * uhat)
    norm first:  dx = du,              dgate = dy * w * uhat * act'(gate)
    gate first:  dx = du * act(gate),  dgate = du * x * act'(gate)

Source: Dao and Gu 2024, arXiv:2405.21060 (gate first); Yang et al. 2024, arXiv:2412.06464.
"""

import operator

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .arguments import check, check_beside, check_form
from .gated_row_norm import GatedRowNormFunction

__all__ = ["GatedRMSNorm", "gated_rms_norm", "gated_rms_norm_ref"]


def gated_rms_norm_ref(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    activation: str = "silu",
    cast: str = "after",
) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    act = getattr(torch.nn.functional, activation)(gate.to(acc))
    u = x.to(acc) if norm_before_gate else x.to(acc) * act
    u = u.unflatten(-1, (-1, group_size or x.shape[-1]))
    y = (u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    if cast == "before":
        y = y.to(x.dtype)
        y = y if weight is None else weight * y
        # the gate's product is fp32 again
        return (y * act).to(x.dtype) if norm_before_gate else y
    y = y if weight is None else weight.to(acc) * y
    return (y * act if norm_before_gate else y).to(x.dtype)


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    activation: str = "silu",
    cast: str = "after",
) -> Tensor:
    """RMS normalisation of the last dimension with a gate, which is applied after it or before it.

    norm_before_gate: y = x / rms(x) * weight * act(gate)
    else:             y = u / rms(u) * weight,  u = x * act(gate)

    Args:
        x: [..., N], float16, bfloat16, float32 or float64; any strides.
        gate: [..., N], the shape of x; any of these dtypes.
        weight: [N], any of these dtypes, or None for no scaling.
        eps: added to the mean square.
        group_size: number of columns that share a mean square; divides N, None is N.
        norm_before_gate: whether the norm comes first (Qwen3-Next, OLMo-Hybrid, Kimi-Linear) or the
            gate (Mamba-2, Bamba, Zamba2, Nemotron-H, Granite 4).
        activation: "silu", or "sigmoid" (Kimi-Linear).
        cast: "after" rounds once, to the dtype of x, after all products (Kimi-Linear, Falcon-H1);
            "before" rounds the normalised values before they are multiplied by the weight
            (Qwen3-Next, OLMo-Hybrid, Mamba-2 and those after it).

    Returns:
        [..., N] in the dtype of x, formed in fp32 (fp64 for float64). With `cast="before"` and the
        gate first it is in the promoted dtype of x and weight.

    Peak memory: y, dx and dgate, 4 bytes a group of columns of each row for 1 / rms, and for the
    weight's gradient 4 group_size bytes a program, of which there are up to six a streaming
    multiprocessor.

    Raises:
        ValueError: shapes that do not fit, a group_size that does not divide N, an unknown
            `activation` or `cast`, a negative eps, tensors on different devices.
        TypeError: a dtype that is not floating point.

    Source: Dao and Gu 2024, arXiv:2405.21060; Yang et al. 2024, arXiv:2412.06464.
    """
    check("gated_rms_norm", x, {"weight": weight}, eps, cast=cast)
    _check_gate(x, gate, group_size, activation, cast)
    if not use_kernels(x):
        return gated_rms_norm_ref(
            x, gate, weight, eps, group_size=group_size,
            norm_before_gate=norm_before_gate, activation=activation, cast=cast,
        )  # fmt: skip
    size = x.shape[-1] if group_size is None else operator.index(group_size)
    form = size, norm_before_gate, activation, cast
    return GatedRowNormFunction.apply(x, gate, weight, eps, form)


def _check_gate(x: Tensor, gate: Tensor, K: int | None, activation: str, cast: str) -> None:
    if gate.shape != x.shape:
        shapes = f"x {tuple(x.shape)} and gate {tuple(gate.shape)}"
        raise ValueError(f"gated_rms_norm: {shapes} must have one shape")
    check_beside("gated_rms_norm", x, "gate", gate)
    if K is not None and (K < 1 or x.shape[-1] % K):
        raise ValueError(f"gated_rms_norm: group_size {K} must divide N of x {tuple(x.shape)}")
    _check_choices("gated_rms_norm", activation, cast)


def _check_choices(name: str, activation: str, cast: str) -> None:
    if activation not in ("silu", "sigmoid"):
        raise ValueError(f"{name}: activation must be 'silu' or 'sigmoid', not {activation!r}")
    if cast == "rstd":
        raise ValueError(f"{name}: cast must be 'after' or 'before', not 'rstd'")


class GatedRMSNorm(torch.nn.Module):
    """`gated_rms_norm` with a weight of its own, called with x and gate.

    Its parameter is called `weight` as in the gated norms of transformers: they exchange state
    dicts.

    Args:
        normalized_shape: N.
        eps: added to the mean square.
        elementwise_affine: whether there is a weight; it starts as ones.
        group_size, norm_before_gate, activation, cast: as in `gated_rms_norm`.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        device=None,
        dtype=None,
        *,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        activation: str = "silu",
        cast: str = "after",
    ):
        super().__init__()
        self.normalized_shape, self.eps = normalized_shape, eps
        self.group_size, self.norm_before_gate = group_size, norm_before_gate
        self.activation, self.cast = activation, cast
        check_form("GatedRMSNorm", elementwise_affine, 0.0, cast)
        _check_choices("GatedRMSNorm", activation, cast)
        if group_size is not None and (group_size < 1 or normalized_shape % group_size):
            raise ValueError(
                f"GatedRMSNorm: group_size {group_size} must divide {normalized_shape}"
            )
        weight = torch.empty(normalized_shape, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(weight) if elementwise_affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        if self.weight is not None:
            torch.nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gated_rms_norm(
            x, gate, self.weight, self.eps, group_size=self.group_size,
            norm_before_gate=self.norm_before_gate, activation=self.activation, cast=self.cast,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.weight is not None}, group_size={self.group_size}, "
            f"norm_before_gate={self.norm_before_gate}, activation={self.activation!r}, "
            f"cast={self.cast!r}"
        )
