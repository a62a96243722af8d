"""Forward KL of rows of logits from a few classes of the teacher, and its gradient: one kernel.

    loss = sum_k p_k (log p_k - log q_k),  q = softmax(x / T)
    dx_j = (q_j sum_k p_k - sum_{k: id_k = j} p_k) / T

x [M, V] logits of the student; log p, ids [M, k] log-probabilities and classes of the teacher. The
p need not sum to one; a class may be listed twice; one of p = 0 does not count, whatever its id. An
id outside [0, V) that counts touches no memory and makes the loss and the gradient of its row NaN.

Source: torch.nn.functional.kl_div.
"""

import torch
from liger_core.device import use_kernels
from liger_core.kernels import power_of_2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .divergence_kernels import class_columns, closed_sum, is_ignored, online_sum, store_row
from .divergence_torch import Divergence

__all__ = ["top_k_fwd"]

LOG2_OF_BASE = tl.constexpr(1.4426950408889634)


def _top_k_torch(
    x: Tensor, p: Tensor, ids: Tensor, labels: Tensor | None, how: Divergence, dx: Tensor | None,
    g: Tensor | None,
) -> Tensor:  # fmt: skip
    acc = torch.promote_types(torch.promote_types(x.dtype, p.dtype), torch.float32)
    u = torch.log_softmax(x.to(acc) / how.temperature, -1)
    v, p = p.to(acc), p.to(acc).exp()
    outside = (ids < 0) | (ids >= x.shape[-1])
    index = ids.masked_fill(outside, 0).long()
    p = p.masked_fill(outside & (p != 0), float("nan"))
    loss = (p * (v - u.gather(1, index))).masked_fill_(p == 0, 0.0).sum(-1)
    ignored = None if labels is None else labels == how.ignore_index
    if dx is not None and g is not None:
        d = u.exp() * p.sum(-1, keepdim=True)
        d.scatter_add_(1, index, -p)
        d *= (g / how.temperature).expand(d.shape[0])[:, None]
        dx.copy_(d if ignored is None else d.masked_fill_(ignored[:, None], 0.0))
    return loss if ignored is None else loss.masked_fill_(ignored, 0.0)


@triton.jit
def _top_k_kernel(
    X, P, IDS, LABELS, LOSS, DX, G, stride_x, stride_p, stride_ids, stride_dx, stride_g, V, K,
    ignore_index, temperature, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LOSS.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    X += row * stride_x
    P += row * stride_p
    IDS += row * stride_ids
    if DX is not None:
        DX += row * stride_dx
    if is_ignored(LABELS, row, ignore_index):
        tl.store(LOSS + row, 0.0)
        if DX is not None:
            for start in range(0, V, BLOCK_V):
                store_row(DX, start + class_columns(BLOCK_V), V, 0.0)
        return

    temperature = tl.cast(temperature, acc)
    unit = tl.full((), LOG2_OF_BASE, acc) / temperature
    m = tl.full((BLOCK_V // 8,), float("-inf"), acc)
    total = tl.zeros((BLOCK_V // 8,), acc)
    for start in range(0, V, BLOCK_V):
        m, total = online_sum(X, start + class_columns(BLOCK_V), V, m, total, unit)
    top, log_sum = closed_sum(m, total, unit)

    k = tl.arange(0, BLOCK_K)
    ids = tl.load(IDS + k, mask=k < K, other=-1)
    v = tl.load(P + k, mask=k < K, other=float("-inf")).to(acc) * LOG2_OF_BASE
    p = tl.exp2(v)
    inside = (ids >= 0) & (ids < V)
    x = tl.load(X + ids, mask=inside, other=float("nan")).to(acc)
    u = (x - top) * unit - log_sum
    loss = tl.where(p == 0.0, 0.0, p * (v - u))
    tl.store(LOSS + row, tl.sum(loss, axis=0) / LOG2_OF_BASE)

    if DX is not None:
        mass = tl.sum(tl.where(inside | (p == 0.0), p, float("nan")), axis=0)
        g = tl.load(G + row * stride_g).to(acc) / temperature
        # of all that list the same class
        own = tl.zeros((BLOCK_K,), acc)
        for i in range(K):
            p_i = tl.exp2(tl.load(P + i).to(acc) * LOG2_OF_BASE)
            own += tl.where(ids == tl.load(IDS + i), p_i, 0.0)
        # DX may be X, whose logits of the listed classes other threads have read by then
        tl.debug_barrier()
        for start in range(0, V, BLOCK_V):
            cols = start + class_columns(BLOCK_V)
            z = tl.load(X + cols, mask=cols < V, other=float("-inf")).to(acc)
            q = tl.exp2((z - top) * unit - log_sum)
            store_row(DX, cols, V, q * (mass * g))
        tl.debug_barrier()
        tl.store(DX + ids, (tl.exp2(u) * mass - own) * g, mask=inside)


def top_k_fwd(
    x: Tensor, p: Tensor, ids: Tensor, labels: Tensor | None, how: Divergence,
    dx: Tensor | None = None, g: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Loss [M] of each row of x [M, V] for log-probabilities p and ids [M, k]; with `dx` [M, V],
    which may be x, also the gradient of sum(loss * g), g 0-d or [M].
    """
    if not use_kernels(x):
        return _top_k_torch(x, p, ids, labels, how, dx, g)
    M, V = x.shape
    acc = torch.promote_types(torch.promote_types(x.dtype, p.dtype), torch.float32)
    loss = torch.empty(M, dtype=acc, device=x.device)
    if M:
        block_v = min(max(power_of_2(V), 256), 8192)
        launch(
            _top_k_kernel, (M,),
            x, p, ids, labels, loss, dx, g, x.stride(0), p.stride(0), ids.stride(0),
            0 if dx is None else dx.stride(0), g.stride(0) if g is not None and g.ndim else 0,
            V, ids.shape[1], how.ignore_index, how.temperature,
            num_warps=min(max(block_v // 512, 4), 16), BLOCK_V=block_v,
            BLOCK_K=power_of_2(ids.shape[1]),
        )  # fmt: skip
    return loss
