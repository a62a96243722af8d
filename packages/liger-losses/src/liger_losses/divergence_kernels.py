"""The divergence of two rows and its gradient: one kernel pair.

    q, p: student and teacher;  u = log q, v = log p
    kl          D = sum_j p_j (v_j - u_j)             d_j = dD / du_j = -p_j
    reverse_kl  D = sum_j q_j (u_j - v_j)             d_j = q_j (u_j - v_j) + q_j
    jsd         D = sum_j b p_j (v_j - log m_j) + (1 - b) q_j (u_j - log m_j),  m = b p + (1 - b) q
                                                      d_j = (1 - b) q_j (u_j - log m_j)
    tvd         D = 1/2 sum_j |p_j - q_j|             d_j = 1/2 q_j sign(q_j - p_j)

of log-probabilities u, v, or of logits x, y with u = log_softmax(x / T), v = log_softmax(y / T):
then dx_j = (d_j - q_j sum_i d_i) / T. A class with p = 0 (or q = 0) adds nothing where its factor
is 0, whatever the other logarithm. Losses and sums are fp32 (fp64 for fp64 inputs).

    x, p [M, V] input (the student's, becomes its gradient) and target; labels, loss [M]
    stats [M, 5]: of x, then of p, the maximum and log2(sum_j 2^(log2(e) / T (x_j - maximum))), and
    sum_i d_i

Logarithms are of base 2 inside. With e the smaller of p and q over the larger and w its weight,
t = 1 - w (1 - e), the JSD of a class is -larger (t log t - w e log e), so equal rows give 0.

Source: torch.nn.functional.kl_div; generalised JSD: arXiv:2306.13649.
"""

import torch
from liger_core.device import use_kernels
from liger_core.kernels import ceil_div, log2, power_of_2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from torch import Tensor

from .divergence_torch import Divergence, divergence_bwd_torch, divergence_fwd_torch

__all__ = [
    "Divergence", "class_columns", "closed_sum", "divergence_bwd", "divergence_fwd", "is_ignored",
    "online_sum", "store_row",
]  # fmt: skip

LOG2_OF_E = tl.constexpr(1.4426950408889634)
LN_OF_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def class_columns(BLOCK_V: tl.constexpr):
    # groups of eight classes belong to one thread: no exchange between threads in a loop
    return tl.arange(0, BLOCK_V // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def is_ignored(LABELS, row, ignore_index):
    ignored = False
    if LABELS is not None:
        ignored = tl.load(LABELS + row) == ignore_index
    return ignored


@triton.jit
def store_row(DX, cols, V, dx):
    tl.store(DX + cols, dx, mask=cols < V)


@triton.jit
def _reference(m):
    """A reference for exp2(x - m) that keeps a sum over nothing but -inf at zero."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def online_sum(X, cols, V, m, total, unit):
    """Online maximum, and sum of 2^(unit (x - m)), of each group of eight."""
    x = tl.load(X + cols, mask=cols < V, other=float("-inf")).to(m.dtype)
    m_new = tl.maximum(m, tl.max(x, axis=1))
    reference = _reference(m_new)
    total *= tl.exp2((m - reference) * unit)
    total += tl.sum(tl.exp2((x - reference[:, None]) * unit), axis=1)
    return m_new, total


@triton.jit
def closed_sum(m, total, unit):
    """The maximum of the row, and log2 of its sum."""
    top = _reference(tl.max(m, axis=0))
    return top, tl.log2(tl.sum(total * tl.exp2((m - top) * unit), axis=0))


@triton.jit
def _normalisers(X, P, V, unit, acc: tl.constexpr, BLOCK_V: tl.constexpr):
    """The maximum and log2 of the sum of both rows."""
    m_x = tl.full((BLOCK_V // 8,), float("-inf"), acc)
    m_p = tl.full((BLOCK_V // 8,), float("-inf"), acc)
    total_x = tl.zeros((BLOCK_V // 8,), acc)
    total_p = tl.zeros((BLOCK_V // 8,), acc)
    for start in range(0, V, BLOCK_V):
        cols = start + class_columns(BLOCK_V)
        m_x, total_x = online_sum(X, cols, V, m_x, total_x, unit)
        m_p, total_p = online_sum(P, cols, V, m_p, total_p, unit)
    return closed_sum(m_x, total_x, unit) + closed_sum(m_p, total_p, unit)


@triton.jit
def _mixture(u, v, beta):
    """(loss, d, q) of the JSD."""
    # finite logarithms, so that a probability of 0 times one of them is 0
    u = tl.maximum(u, -1e30)
    v = tl.maximum(v, -1e30)
    d = v - u
    more = d > 0
    e = tl.exp2(-tl.abs(d))
    top = tl.exp2(tl.maximum(u, v))
    w = tl.where(more, 1.0 - beta, beta)
    t = 1.0 - w * (1.0 - e)
    log_t = log2(t)
    q = tl.where(more, e, 1.0) * top
    student = (1.0 - beta) * LN_OF_2 * q * (tl.minimum(-d, 0.0) - log_t)
    return -top * (t * log_t + w * e * tl.abs(d)), student, q


@triton.jit
def _terms(
    X, P, cols, V, normalisers, unit, beta,
    KIND: tl.constexpr, LOGITS: tl.constexpr, LOG_TARGET: tl.constexpr,
):  # fmt: skip
    """(loss, d, q) of a tile, 0 beyond the row; losses that are logarithms in base 2. For logits a
    multiple of q may be missing from d.
    """
    acc: tl.constexpr = unit.dtype
    u = tl.load(X + cols, mask=cols < V, other=float("-inf")).to(acc)
    if LOG_TARGET:
        v = tl.load(P + cols, mask=cols < V, other=float("-inf")).to(acc)
        if LOGITS:
            top_x, log_x, top_p, log_p = normalisers
            u = (u - top_x) * unit - log_x
            v = (v - top_p) * unit - log_p
        else:
            u *= unit
            v *= unit
        p = tl.exp2(v)
    else:
        u *= unit
        p = tl.load(P + cols, mask=cols < V, other=0.0).to(acc)
        v = tl.log2(p)
    if KIND == "jsd":
        loss, d, q = _mixture(u, v, beta)
    else:
        q = tl.exp2(u)
        if KIND == "kl":
            loss = tl.where(p == 0.0, 0.0, p * (v - u))
            d = -p
        elif KIND == "reverse_kl":
            loss = tl.where(q == 0.0, 0.0, q * (u - v))
            d = loss * LN_OF_2
            if not LOGITS:
                d += q
        else:
            loss = 0.5 * tl.abs(p - q)
            d = tl.where(p == q, 0.0, tl.where(p > q, -0.5, 0.5) * q)
    return loss, d, q


@triton.jit
def _divergence_fwd_kernel(
    X, P, LABELS, LOSS, STATS, DX, G, stride_x, stride_p, stride_dx, stride_g, V, ignore_index,
    beta, temperature, KIND: tl.constexpr, LOGITS: tl.constexpr, LOG_TARGET: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = LOSS.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(V, BLOCK_V)
    X += row * stride_x
    P += row * stride_p
    if DX is not None:
        DX += row * stride_dx
    if is_ignored(LABELS, row, ignore_index):
        tl.store(LOSS + row, 0.0)
        if DX is not None:
            for start in range(0, V, BLOCK_V):
                store_row(DX, start + class_columns(BLOCK_V), V, 0.0)
        return

    unit, beta = tl.full((), LOG2_OF_E, acc) / tl.cast(temperature, acc), tl.cast(beta, acc)
    if DX is not None:
        g = tl.load(G + row * stride_g).to(acc) / tl.cast(temperature, acc)
    zero = tl.cast(0.0, acc)
    normalisers = (zero, zero, zero, zero)
    if LOGITS:
        normalisers = _normalisers(X, P, V, unit, acc, BLOCK_V)

    loss_sum = tl.zeros((BLOCK_V // 8,), acc)
    d_sum = tl.zeros((BLOCK_V // 8,), acc)
    # last tile first: it is the one most likely still in the cache
    for i in range(tiles):
        cols = (tiles - 1 - i) * BLOCK_V + class_columns(BLOCK_V)
        loss, d, q = _terms(X, P, cols, V, normalisers, unit, beta, KIND, LOGITS, LOG_TARGET)
        loss_sum += tl.sum(loss, axis=1)
        if LOGITS and KIND != "kl":
            d_sum += tl.sum(d, axis=1)
        elif DX is not None:
            if LOGITS:
                d += q
            store_row(DX, cols, V, d * g)
    tl.store(LOSS + row, tl.sum(loss_sum, axis=0) * (1.0 if KIND == "tvd" else LN_OF_2))
    if LOGITS:
        mean = tl.cast(-1.0, acc)
        if KIND != "kl":
            mean = tl.sum(d_sum, axis=0)
        if STATS is not None:
            stats = STATS + row * 5
            for i in tl.static_range(4):
                tl.store(stats + i, normalisers[i])
            tl.store(stats + 4, mean)
        if DX is not None and KIND != "kl":
            for start in range(0, V, BLOCK_V):
                cols = start + class_columns(BLOCK_V)
                _, d, q = _terms(X, P, cols, V, normalisers, unit, beta, KIND, LOGITS, LOG_TARGET)
                store_row(DX, cols, V, (d - q * mean) * g)


@triton.jit
def _divergence_bwd_kernel(
    X, P, LABELS, STATS, DX, G, stride_x, stride_p, stride_dx, stride_g, V, ignore_index,
    beta, temperature, KIND: tl.constexpr, LOGITS: tl.constexpr, LOG_TARGET: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = tl.float64 if G.dtype.element_ty == tl.float64 else tl.float32
    tiles = tl.cdiv(V, BLOCK_V)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    cols = tl.program_id(0) % tiles * BLOCK_V + class_columns(BLOCK_V)
    DX += row * stride_dx
    if is_ignored(LABELS, row, ignore_index):
        store_row(DX, cols, V, 0.0)
        return
    temperature = tl.cast(temperature, acc)
    mean = tl.cast(0.0, acc)
    normalisers = (mean, mean, mean, mean)
    if LOGITS:
        stats = STATS + row * 5
        normalisers = (tl.load(stats), tl.load(stats + 1), tl.load(stats + 2), tl.load(stats + 3))
        mean = tl.load(stats + 4)
    unit, beta = tl.full((), LOG2_OF_E, acc) / temperature, tl.cast(beta, acc)
    X, P = X + row * stride_x, P + row * stride_p
    _, d, q = _terms(X, P, cols, V, normalisers, unit, beta, KIND, LOGITS, LOG_TARGET)
    if LOGITS:
        d -= q * mean
    g = tl.load(G + row * stride_g).to(acc) / temperature
    store_row(DX, cols, V, d * g)


def _divergence_config(V: int, passes: int) -> tuple[int, int]:
    """(columns, warps) of a tile; rows that are read again are few at a time, to stay in the
    cache.
    """
    block_v = min(max(power_of_2(V), 256), 4096 if passes == 1 else 8192)
    return block_v, min(max(block_v // 512, 4), 16)


def divergence_fwd(
    x: Tensor, p: Tensor, labels: Tensor | None, how: Divergence, dx: Tensor | None = None,
    g: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Loss [M] of each row of x and p [M, V], and what `divergence_bwd` needs of logits; with `dx`
    [M, V], which may be x, instead the gradient of sum(loss * g), g 0-d or [M].
    """
    if not use_kernels(x):
        return divergence_fwd_torch(x, p, labels, how, dx, g), None
    M, V = x.shape
    acc = torch.promote_types(torch.promote_types(x.dtype, p.dtype), torch.float32)
    loss = torch.empty(M, dtype=acc, device=x.device)
    keep = how.logits and dx is None
    stats = torch.empty((M, 5), dtype=acc, device=x.device) if keep else None
    if M:
        block_v, warps = _divergence_config(V, 2 if how.logits else 1)
        launch(
            _divergence_fwd_kernel, (M,),
            x, p, labels, loss, stats, dx, g, x.stride(0), p.stride(0),
            0 if dx is None else dx.stride(0), g.stride(0) if g is not None and g.ndim else 0,
            V, how.ignore_index, how.beta, how.temperature, num_warps=warps, KIND=how.kind,
            LOGITS=how.logits, LOG_TARGET=how.log_target, BLOCK_V=block_v,
        )  # fmt: skip
    return loss, stats


def divergence_bwd(
    x: Tensor, p: Tensor, labels: Tensor | None, how: Divergence, stats: Tensor | None, dx: Tensor,
    g: Tensor,
) -> None:  # fmt: skip
    """Writes the gradient of sum(loss * g) into dx [M, V], which may be x; g is [M] or 0-d, in the
    dtype of the loss.
    """
    if not use_kernels(x):
        return divergence_bwd_torch(x, p, labels, how, dx, g)
    M, V = x.shape
    if M:
        block_v, warps = _divergence_config(V, 1)
        launch(
            _divergence_bwd_kernel, (M * ceil_div(V, block_v),),
            x, p, labels, stats, dx, g, x.stride(0), p.stride(0), dx.stride(0),
            g.stride(0) if g.ndim else 0, V, how.ignore_index, how.beta, how.temperature,
            num_warps=warps, KIND=how.kind, LOGITS=how.logits, LOG_TARGET=how.log_target,
            BLOCK_V=block_v,
        )  # fmt: skip
    return None
