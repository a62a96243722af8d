"""The cosine distance of two rows and its gradient: one kernel.

    loss = 1 - x . y / (|x| |y|),  dx = (cos x / |x| - y / |y|) / |x|

x, y [M, V]; loss [M] in fp32 (fp64 for fp64 inputs). A norm below 1e-8 counts as 1e-8, a constant.

Source: torch.nn.functional.cosine_similarity.
"""

import torch
from liger_core.device import use_kernels
from liger_core.kernels import power_of_2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .divergence_kernels import class_columns, is_ignored, store_row

__all__ = ["cosine_fwd"]

SMALLEST_NORM = tl.constexpr(1e-8)


def _cosine_torch(
    x: Tensor, y: Tensor, labels: Tensor | None, ignore_index: int, dx: Tensor | None,
    g: Tensor | None,
) -> Tensor:  # fmt: skip
    acc = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    a, b = x.to(acc), y.to(acc)
    norm, norm_b = (t.norm(dim=-1, keepdim=True) for t in (a, b))
    small = norm < 1e-8
    norm, norm_b = norm.clamp(min=1e-8), norm_b.clamp(min=1e-8)
    cos = (a * b).sum(-1, keepdim=True) / (norm * norm_b)
    ignored = None if labels is None else labels == ignore_index
    if dx is not None and g is not None:
        d = a * (cos / norm).masked_fill(small, 0.0) - b / norm_b
        d *= g.expand(d.shape[0])[:, None] / norm
        dx.copy_(d if ignored is None else d.masked_fill_(ignored[:, None], 0.0))
    loss = 1.0 - cos[:, 0]
    return loss if ignored is None else loss.masked_fill_(ignored, 0.0)


@triton.jit
def _load_pair(X, Y, cols, V, acc: tl.constexpr):
    x = tl.load(X + cols, mask=cols < V, other=0.0).to(acc)
    return x, tl.load(Y + cols, mask=cols < V, other=0.0).to(acc)


@triton.jit
def _cosine_kernel(
    X, Y, LABELS, LOSS, DX, G, stride_x, stride_y, stride_dx, stride_g, V, ignore_index,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LOSS.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    X += row * stride_x
    Y += row * stride_y
    if DX is not None:
        DX += row * stride_dx
    if is_ignored(LABELS, row, ignore_index):
        tl.store(LOSS + row, 0.0)
        if DX is not None:
            for start in range(0, V, BLOCK_V):
                store_row(DX, start + class_columns(BLOCK_V), V, 0.0)
        return

    xx = tl.zeros((BLOCK_V // 8,), acc)
    yy = tl.zeros((BLOCK_V // 8,), acc)
    xy = tl.zeros((BLOCK_V // 8,), acc)
    for start in range(0, V, BLOCK_V):
        x, y = _load_pair(X, Y, start + class_columns(BLOCK_V), V, acc)
        xx += tl.sum(x * x, axis=1)
        yy += tl.sum(y * y, axis=1)
        xy += tl.sum(x * y, axis=1)
    norm = tl.sqrt(tl.sum(xx, axis=0))
    small = norm < SMALLEST_NORM
    norm = tl.where(small, SMALLEST_NORM, norm)
    norm_y = tl.sqrt(tl.sum(yy, axis=0))
    norm_y = tl.where(norm_y < SMALLEST_NORM, SMALLEST_NORM, norm_y)
    cos = tl.sum(xy, axis=0) / norm / norm_y
    tl.store(LOSS + row, 1.0 - cos)

    if DX is not None:
        g = tl.load(G + row * stride_g).to(acc) / norm
        along = tl.where(small, 0.0, cos / norm) * g
        across = g / norm_y
        tiles = tl.cdiv(V, BLOCK_V)
        # last tile first: it is the one most likely still in the cache
        for i in range(tiles):
            cols = (tiles - 1 - i) * BLOCK_V + class_columns(BLOCK_V)
            x, y = _load_pair(X, Y, cols, V, acc)
            store_row(DX, cols, V, x * along - y * across)


def cosine_fwd(
    x: Tensor, y: Tensor, labels: Tensor | None, ignore_index: int, dx: Tensor | None = None,
    g: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Loss [M] of each row of x and y [M, V]; with `dx` [M, V], which may be x, also the gradient
    of sum(loss * g), g 0-d or [M].
    """
    if not use_kernels(x):
        return _cosine_torch(x, y, labels, ignore_index, dx, g)
    M, V = x.shape
    acc = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    loss = torch.empty(M, dtype=acc, device=x.device)
    if M:
        block_v = min(max(power_of_2(V), 256), 8192)
        launch(
            _cosine_kernel, (M,),
            x, y, labels, loss, dx, g, x.stride(0), y.stride(0),
            0 if dx is None else dx.stride(0), g.stride(0) if g is not None and g.ndim else 0,
            V, ignore_index, num_warps=min(max(block_v // 512, 4), 16), BLOCK_V=block_v,
        )  # fmt: skip
    return loss
