"""GroupNorm.

    y = (x - mean) / sqrt(var + eps) * w + b

mean and var are those of a group: D neighbouring channels of one sample, L = D S elements. The
variance is a sum of centred squares, whatever the mean: a first tile gives a shift close to it, the
parts of a group that several programs read are merged by their counts, means and centred squares.
Statistics and products are fp32, fp64 for fp64 inputs. A group of up to 16384 elements is read once
in each direction, a larger one twice, by one program for each 4096 elements. Kernels:
`group_norm_kernels`.

    x, y [B, C, S]; w, b [C], each or none; mean, rstd [B, G]
    B samples, C = G D channels in G groups, S positions (the product of all further sizes)
    g = dy * w;  dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), means over the group
    dw = sum(dy * xhat), db = sum(dy), over samples and positions

Source: Wu and He 2018, arXiv:1803.08494; Chan, Golub and LeVeque 1983 for merging variances.
"""

import math
import operator
from typing import NamedTuple

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div, power_of_2, sum_partials
from liger_core.launch import launch
from torch import Tensor

from .arguments import check_beside
from .group_norm_kernels import _group_norm_bwd_kernel, _group_norm_fwd_kernel

__all__ = ["GroupNorm", "group_norm", "group_norm_ref"]


def group_norm_ref(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    groups = x.to(acc).unflatten(1, (num_groups, -1)).flatten(2)
    centred = groups - groups.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = y.reshape(x.shape).transpose(1, -1)
    y = y if weight is None else y * weight.to(acc)
    y = y if bias is None else y + bias.to(acc)
    return y.transpose(1, -1).to(x.dtype)


# elements of a group that is one tile, of a tile of larger ones; parts of a group, all of which
# each of its programs reads
_WIDEST, _TILE, _PARTS = 16384, 4096, 512


class _Cut(NamedTuple):
    """How a group is cut: `rows` of `tiles` each, one without `along`; `each` tiles a part."""

    along: bool
    rows: int
    tiles: int
    each: int
    config: dict[str, int]

    @property
    def parts(self) -> int:
        """Of a row."""
        return ceil_div(self.tiles, self.each)

    @property
    def phases(self) -> list[tuple[bool, bool]]:
        """Of each launch whether it reduces (STATS) and whether it writes the result (APPLY)."""
        return [(True, True)] if self.rows * self.parts == 1 else [(True, False), (False, True)]


def _cut(D: int, S: int, itemsize: int) -> _Cut:
    """The sizes do not depend on the number of groups, so neither do the bits of a result."""
    block_d, block_s = power_of_2(D), power_of_2(S)
    if block_d * block_s > _WIDEST:
        block_s = min(block_s, _TILE)
        block_d = min(block_d, _TILE // block_s)
    tile, along = block_d * block_s, block_s < S
    rows, tiles = (D, ceil_div(S, block_s)) if along else (1, ceil_div(D, block_d))
    each = min(ceil_div(rows * tiles, _PARTS), tiles)
    block_g = max(1, 2048 // tile) if rows * tiles == 1 else 1
    return _Cut(along, rows, tiles, each, {
        "num_warps": min(max(block_g * tile // 1024, 4), 16), "ONE": each == 1, "ALONG": along,
        "BLOCK_PARTS": power_of_2(rows * ceil_div(tiles, each)),
        "BLOCK_G": block_g, "BLOCK_D": block_d, "BLOCK_S": block_s,
        # beyond the first they hold x and dy in shared memory: every target lends 128 KiB
        "STAGES": min(1 + 2**17 // (2 * tile * itemsize), 3),
    })  # fmt: skip


def group_norm_fwd(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, C, ...] -> y contiguous, mean and rstd [B, G]."""
    x = x.contiguous()
    y, D, S = torch.empty_like(x), x.shape[1] // num_groups, math.prod(x.shape[2:])
    acc = torch.promote_types(x.dtype, torch.float32)
    mean = torch.empty((x.shape[0], num_groups), dtype=acc, device=x.device)
    rstd, groups = torch.empty_like(mean), mean.numel()
    if x.numel():
        cut = _cut(D, S, x.element_size())
        grid = ceil_div(groups, cut.config["BLOCK_G"]) * cut.rows, cut.parts
        many = cut.rows * cut.parts
        parts = mean.new_empty((groups, many, 3)) if many > 1 else None
        for stats, apply in cut.phases:
            launch(
                _group_norm_fwd_kernel, grid,
                x, weight, bias, y, mean, rstd, parts, groups, num_groups, D, S,
                cut.tiles, cut.each, eps, STATS=stats, APPLY=apply, **cut.config,
            )  # fmt: skip
    return y, mean, rstd


def group_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: torch.dtype | None,
    mean: Tensor,
    rstd: Tensor,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dy, x [B, C, ...]; bias: its dtype -> dx contiguous, dw, db [C]; None where not in `need`."""
    dy, x = dy.contiguous(), x.contiguous()
    (B, G), C, S = mean.shape, x.shape[1], math.prod(x.shape[2:])
    dx = torch.empty_like(x) if need[0] else None
    dtypes = (1, None if weight is None else weight.dtype), (2, bias)
    wanted = {i: dtype for i, dtype in dtypes if dtype is not None and need[i]}
    if not x.numel():
        grads = {i: x.new_zeros(C, dtype=dtype) for i, dtype in wanted.items()}
        return dx, grads.get(1), grads.get(2)
    cut = _cut(C // G, S, x.element_size())
    grid = ceil_div(B * G, cut.config["BLOCK_G"]) * cut.rows, cut.parts
    sums = mean.new_empty((len(wanted), B * (cut.parts if cut.along else 1), C))
    at = dict(zip(wanted, sums, strict=True))
    many = cut.rows * cut.parts
    parts = mean.new_empty((B * G, many, 2)) if many > 1 and need[0] else None
    for stats, apply in cut.phases if need[0] else [(True, False)]:
        launch(
            _group_norm_bwd_kernel, grid,
            x, weight, dy, dx, mean, rstd, at.get(1), at.get(2), parts,
            B * G, G, C, C // G, S, C // G * S, cut.tiles, cut.each,
            STATS=stats, APPLY=apply, **cut.config,
        )  # fmt: skip
    if not wanted:
        return dx, None, None
    # rounded once where the parameters have one dtype
    one = len(set(wanted.values())) == 1
    totals = sum_partials(sums, next(iter(wanted.values())) if one else mean.dtype)
    grads = {i: total.to(wanted[i]) for i, total in zip(wanted, totals, strict=True)}
    return dx, grads.get(1), grads.get(2)


class GroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, num_groups, weight, bias, eps):
        weight = weight if weight is None else weight.contiguous()
        bias = bias if bias is None else bias.contiguous()
        y, mean, rstd = group_norm_fwd(x, num_groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        # its values have no part in any gradient
        ctx.bias = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        need_x, _, need_w, need_b, _ = ctx.needs_input_grad
        x, weight, mean, rstd = ctx.saved_tensors
        need = need_x, need_w, need_b
        dx, dw, db = group_norm_bwd(dy, x, weight, ctx.bias, mean, rstd, need)
        return dx, None, dw, db, None


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalisation: (x - mean) / sqrt(var + eps) * weight + bias, as
    `torch.nn.functional.group_norm`, with the mean and the variance of C / num_groups channels of a
    sample at all positions.

    Args:
        x: [B, C, ...], float16, bfloat16, float32 or float64; any strides, copied if they are not
            contiguous.
        num_groups: number of groups of neighbouring channels; divides C.
        weight: [C], any of these dtypes, or None.
        bias: [C] likewise, with or without a weight.
        eps: added to the variance.

    Returns:
        The shape and dtype of x, contiguous; formed in fp32 (fp64 for float64) and rounded once.

    Peak memory: y and dx, 8 bytes a group of a sample for mean and rstd, and for each of weight and
    bias 4 C bytes a sample, once for every 4096 positions; of larger groups 12 bytes for every 4096
    elements.

    Raises:
        ValueError: shapes that do not fit, a `num_groups` that does not divide C, a negative eps,
            tensors on different devices.
        TypeError: a dtype that is not floating point, a `num_groups` that is no integer.

    Source: Wu and He 2018, arXiv:1803.08494.
    """
    num_groups = operator.index(num_groups)
    _check(x, num_groups, weight, bias, eps)
    if not use_kernels(x):
        return group_norm_ref(x, num_groups, weight, bias, eps).contiguous()
    return GroupNormFunction.apply(x, num_groups, weight, bias, eps)


def _check(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    if x.ndim < 2:
        raise ValueError(f"group_norm: x {tuple(x.shape)} must be [B, C, ...]")
    if num_groups < 1 or x.shape[1] % num_groups or not x.shape[1]:
        raise ValueError(
            f"group_norm: num_groups {num_groups} must divide C of x {tuple(x.shape)}, C > 0"
        )
    check_beside("group_norm", x, "x", x)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if t.shape != x.shape[1:2]:
            raise ValueError(
                f"group_norm: {name} {tuple(t.shape)} must be [C] of x {tuple(x.shape)}"
            )
        check_beside("group_norm", x, name, t)
    if eps < 0:
        raise ValueError(f"group_norm: eps must not be negative, got {eps}")


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` through `group_norm`: the same arguments, parameters and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
