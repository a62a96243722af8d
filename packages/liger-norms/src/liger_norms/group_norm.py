"""GroupNorm.

    y = (x - mean) / sqrt(var + eps) * w + b

mean and var are those of a group: D neighbouring channels of one sample, L = D S elements. The
variance is a sum of centred squares, whatever the mean: a first tile gives a shift close to it, the
parts of a group that several programs read are merged by their counts, means and centred squares.
Statistics and products are fp32, fp64 for fp64 inputs. A group that fits a tile is read once in
each direction, a larger one twice, one beyond 65536 elements by several programs. Kernels:
`group_norm_kernels`.

    x, y [B, C, S]; w, b [C], each or none; mean, rstd [B, G]
    B samples, C = G D channels in G groups, S positions (the product of all further sizes)
    g = dy * w;  dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), means over the group
    dw = sum(dy * xhat), db = sum(dy), over samples and positions

Source: Wu and He 2018, arXiv:1803.08494; Chan, Golub and LeVeque 1983 for merging variances.
"""

import math

import torch
from liger_core.autograd import once_differentiable
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div, power_of_2, sum_partials
from liger_core.launch import launch
from torch import Tensor

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


# elements of a tile that stays in registers, of one of many tiles, and of a program's tiles
_WIDEST, _TILE, _MOST = 16384, 4096, 65536


def _config(D: int, S: int, itemsize: int) -> tuple[int, int, dict[str, int]]:
    """Tiles of a group, parts of it; sizes of a tile, warps, pipeline stages.

    The sizes do not depend on the number of groups, so neither do the bits of a result. Stages
    beyond the first hold x and dy in shared memory, of which every target lends 128 KiB.
    """
    block_d, block_s = power_of_2(D), power_of_2(S)
    if block_d * block_s > _WIDEST:
        block_s = min(block_s, _TILE)
        block_d = min(block_d, _TILE // block_s)
    tile = block_d * block_s
    tiles = ceil_div(D, block_d) * ceil_div(S, block_s)
    splits = ceil_div(tiles, max(_MOST // tile, ceil_div(tiles, 1024)))
    # none of the parts may be empty
    splits = ceil_div(tiles, ceil_div(tiles, splits))
    block_g = max(1, 2048 // tile) if tiles == 1 else 1
    return tiles, splits, {
        "num_warps": min(max(block_g * tile // 512, 4), 16), "ONE": tiles == 1,
        "BLOCK_G": block_g, "BLOCK_D": block_d, "BLOCK_S": block_s,
        "STAGES": min(1 + 2**17 // (2 * tile * itemsize), 3),
    }  # fmt: skip


def _phases(splits: int) -> list[tuple[bool, bool]]:
    """Of each launch whether it reduces (STATS) and whether it writes the result (APPLY)."""
    return [(True, True)] if splits == 1 else [(True, False), (False, True)]


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
        tiles, splits, config = _config(D, S, x.element_size())
        parts = mean.new_empty((groups, splits, 3)) if splits > 1 else None
        for stats, apply in _phases(splits):
            launch(
                _group_norm_fwd_kernel, (ceil_div(groups, config["BLOCK_G"]) * splits,),
                x, weight, bias, y, mean, rstd, parts, groups, num_groups, D, S, tiles, splits, eps,
                STATS=stats, APPLY=apply, BLOCK_SPLITS=power_of_2(splits), **config,
            )  # fmt: skip
    return y, mean, rstd


def group_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dy, x [B, C, ...] -> dx contiguous, dw, db [C]; None where not in `need`."""
    dy, x = dy.contiguous(), x.contiguous()
    (B, G), C, S = mean.shape, x.shape[1], math.prod(x.shape[2:])
    dx = torch.empty_like(x) if need[0] else None
    wanted = {i: t for i, t in ((1, weight), (2, bias)) if t is not None and need[i]}
    if not x.numel():
        sums = {i: torch.zeros_like(t) for i, t in wanted.items()}
        return dx, sums.get(1), sums.get(2)
    tiles, splits, config = _config(C // G, S, x.element_size())
    rows = B * ceil_div(S, config["BLOCK_S"])
    sums = {i: mean.new_empty((rows, C)) for i in wanted}
    parts = mean.new_empty((B * G, splits, 2)) if splits > 1 and need[0] else None
    for stats, apply in _phases(splits) if need[0] else [(True, False)]:
        launch(
            _group_norm_bwd_kernel, (ceil_div(B * G, config["BLOCK_G"]) * splits,),
            x, weight, dy, dx, mean, rstd, sums.get(1), sums.get(2), parts,
            B * G, G, C, C // G, S, C // G * S, tiles, splits,
            STATS=stats, APPLY=apply, BLOCK_SPLITS=power_of_2(splits), **config,
        )  # fmt: skip
    sums = {i: sum_partials(sums[i], t.dtype) for i, t in wanted.items()}
    return dx, sums.get(1), sums.get(2)


class GroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, num_groups, weight, bias, eps):
        weight = weight if weight is None else weight.contiguous()
        bias = bias if bias is None else bias.contiguous()
        y, mean, rstd = group_norm_fwd(x, num_groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        need_x, _, need_w, need_b, _ = ctx.needs_input_grad
        x, weight, bias, mean, rstd = ctx.saved_tensors
        need = need_x, need_w, need_b
        dx, dw, db = group_norm_bwd(dy, x, weight, bias, mean, rstd, need)
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
    bias 4 C bytes a sample, once for every 4096 positions.

    Raises:
        ValueError: shapes that do not fit, a `num_groups` that does not divide C, a negative eps,
            tensors on different devices.
        TypeError: a dtype that is not floating point.

    Source: Wu and He 2018, arXiv:1803.08494.
    """
    _check(x, num_groups, weight, bias, eps)
    if not use_kernels(x):
        return group_norm_ref(x, num_groups, weight, bias, eps)
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
    if not x.is_floating_point():
        raise TypeError(f"group_norm: x {x.dtype} must be floating point")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if t.shape != x.shape[1:2]:
            raise ValueError(
                f"group_norm: {name} {tuple(t.shape)} must be [C] of x {tuple(x.shape)}"
            )
        if not t.is_floating_point():
            raise TypeError(f"group_norm: {name} {t.dtype} must be floating point")
        if t.device != x.device:
            raise ValueError(f"group_norm: x is on {x.device}, {name} on {t.device}")
    if eps < 0:
        raise ValueError(f"group_norm: eps must not be negative, got {eps}")


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` through `group_norm`: the same arguments, parameters and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
