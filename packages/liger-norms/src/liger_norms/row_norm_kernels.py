"""Kernels of `row_norm`; its docstring has the formulas and the sizes."""

from liger_core.lang import tl, triton

__all__ = [
    "_row_norm_bwd_kernel",
    "_row_norm_fwd_kernel",
    "_wide_bwd_kernel",
    "_wide_means_kernel",
]


@triton.jit
def _row_norm_fwd_kernel(
    X, RESIDUAL, W, B, S, Y, MEAN, RSTD, stride_x, stride_r, M, N, T, eps, offset,
    CAST: tl.constexpr, GROUPED: tl.constexpr, TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)[None, :]
    # where the weights of these rows begin
    first = tl.minimum(rows, M - 1) // T * N if GROUPED else tl.zeros((1, 1), dtype=tl.int64)

    s = _load_sum(X, RESIDUAL, S, RSTD, rows, cols, stride_x, stride_r, M, N)
    mean = 0.0
    # columns beyond the first tile: none unless a row is wider than a tile
    if MEAN is not None:
        total = s
        for tile in tl.range(1, TILES, num_stages=2):
            at = tile * BLOCK_N + cols
            total += _load_sum(X, RESIDUAL, S, RSTD, rows, at, stride_x, stride_r, M, N)
        mean = tl.sum(total, axis=1, keep_dims=True) / N
        tl.store(MEAN + rows, mean, mask=rows < M)
    square = _squared(s, mean, MEAN, cols, N)
    for tile in tl.range(1, TILES, num_stages=2):
        at = tile * BLOCK_N + cols
        more = _load_sum(X, RESIDUAL, S, RSTD, rows, at, stride_x, stride_r, M, N)
        square += _squared(more, mean, MEAN, at, N)
    rstd = tl.rsqrt(tl.sum(square, axis=1, keep_dims=True) / N + tl.cast(eps, tl.float32))
    tl.store(RSTD + rows, rstd, mask=rows < M)

    _store_y(s, mean, rstd, W, B, S, Y, X, rows, cols, first, offset, M, N, CAST, TILES)
    # last tile first: it is the one most likely still in the cache
    for back in tl.range(1, TILES, num_stages=2):
        at = (TILES - back) * BLOCK_N + cols
        more = _load_sum(X, RESIDUAL, S, RSTD, rows, at, stride_x, stride_r, M, N)
        _store_y(more, mean, rstd, W, B, S, Y, X, rows, at, first, offset, M, N, CAST, TILES)


@triton.jit
def _load_sum(X, RESIDUAL, S, RSTD, rows, cols, stride_x, stride_r, M, N):
    acc = RSTD.dtype.element_ty
    mask = (rows < M) & (cols < N)
    s = tl.load(X + rows * stride_x + cols, mask=mask, other=0.0).to(acc)
    if RESIDUAL is not None:
        s += tl.load(RESIDUAL + rows * stride_r + cols, mask=mask, other=0.0).to(acc)
        s = s.to(S.dtype.element_ty).to(acc)
    return s


@triton.jit
def _squared(s, mean, MEAN, cols, N):
    if MEAN is not None:
        s = tl.where(cols < N, s - mean, 0.0)
    return s * s


@triton.jit
def _store_y(
    s, mean, rstd, W, B, S, Y, X, rows, cols, first, offset, M, N,
    CAST: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    mask = (rows < M) & (cols < N)
    # results need no room in the cache that holds a wide row between its readings
    EVICT: tl.constexpr = "evict_first" if TILES > 1 else ""
    dtype = X.dtype.element_ty
    if S is not None:
        dtype = S.dtype.element_ty
        tl.store(S + rows * N + cols, s.to(dtype), mask=mask, eviction_policy=EVICT)
    if CAST == "rstd":
        rstd = rstd.to(dtype).to(rstd.dtype)
    y = (s - mean) * rstd
    if CAST == "before":
        y = y.to(dtype).to(s.dtype)
    if W is not None:
        y *= _load_weight(W, first + cols, cols < N, offset, s.dtype)
    if B is not None:
        y += tl.load(B + first + cols, mask=cols < N, other=0.0).to(s.dtype)
    tl.store(Y + rows * N + cols, y.to(Y.dtype.element_ty), mask=mask, eviction_policy=EVICT)


@triton.jit
def _row_norm_bwd_kernel(
    S, W, DY, DS, DX, MEAN, RSTD, SUMS, stride_s, stride_dy, stride_ds, N, T, P, offset,
    CAST: tl.constexpr, DW: tl.constexpr, DB: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    group, p = tl.program_id(0) // P, tl.program_id(0) % P
    cols = tl.arange(0, BLOCK_N)[None, :]
    at = group.to(tl.int64) * N + cols
    w = _load_weight(W, at, cols < N, offset, RSTD.dtype.element_ty)
    dw = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)
    db = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)

    for tile in tl.range(p, tl.cdiv(T, BLOCK_M), P, num_stages=STAGES):
        local = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        rows, valid = group.to(tl.int64) * T + local, local < T
        if BLOCK_N > 8192:
            # registers are short: the weight comes from the cache each time
            w = _load_weight(W, at, cols < N, offset, RSTD.dtype.element_ty)
        xhat, dy, g, rstd = _load_bwd(
            S, W, DY, MEAN, RSTD, w, rows, cols, valid, stride_s, stride_dy, N
        )
        if DX is not None:
            dx = g - xhat * (tl.sum(g * xhat, axis=1, keep_dims=True) / N)
            if MEAN is not None:
                dx -= tl.sum(g, axis=1, keep_dims=True) / N
            _store_dx(dx * rstd, DS, DX, rows, cols, valid, stride_ds, N)
        if DW:
            dw += dy * _rounded(xhat, S, CAST)
        if DB:
            db += dy

    cols = tl.arange(0, BLOCK_N)
    _store_sums(dw, db, SUMS, tl.program_id(0), tl.num_programs(0), cols, N, DW, DB)


@triton.jit
def _load_weight(W, at, inside, offset, acc: tl.constexpr):
    w = tl.full((), 1.0, acc)
    if W is not None:
        w = tl.load(W + at, mask=inside, other=0.0).to(acc)
        if offset is not None:
            w += tl.cast(offset, tl.float32)
    return w


@triton.jit
def _load_bwd(S, W, DY, MEAN, RSTD, w, rows, cols, valid, stride_s, stride_dy, N):
    mask = valid & (cols < N)
    rstd = tl.load(RSTD + rows, mask=valid, other=0.0)
    xhat = tl.load(S + rows * stride_s + cols, mask=mask, other=0.0).to(rstd.dtype)
    if MEAN is not None:
        mean = tl.load(MEAN + rows, mask=valid, other=0.0)
        xhat = tl.where(cols < N, xhat - mean, 0.0)
    xhat *= rstd
    dy = tl.load(DY + rows * stride_dy + cols, mask=mask, other=0.0).to(rstd.dtype)
    g = dy
    if W is not None:
        g *= w
    return xhat, dy, g, rstd


@triton.jit
def _store_dx(dx, DS, DX, rows, cols, valid, stride_ds, N):
    mask = valid & (cols < N)
    if DS is not None:
        dx += tl.load(DS + rows * stride_ds + cols, mask=mask, other=0.0).to(dx.dtype)
    tl.store(DX + rows * N + cols, dx.to(DX.dtype.element_ty), mask=mask)


@triton.jit
def _store_sums(dw, db, SUMS, p, programs, cols, N, DW: tl.constexpr, DB: tl.constexpr):
    """One row of SUMS [dw, then db; program; N]."""
    at = p.to(tl.int64) * N + cols
    if DW:
        tl.store(SUMS + at, tl.sum(dw, axis=0).to(SUMS.dtype.element_ty), mask=cols < N)
        at += programs.to(tl.int64) * N
    if DB:
        tl.store(SUMS + at, tl.sum(db, axis=0).to(SUMS.dtype.element_ty), mask=cols < N)


@triton.jit
def _rounded(xhat, S, CAST: tl.constexpr):
    if CAST == "before":
        xhat = xhat.to(S.dtype.element_ty).to(xhat.dtype)
    return xhat


@triton.jit
def _wide_means_kernel(
    S, W, DY, MEAN, RSTD, C1, C2, stride_s, stride_dy, N, T, offset, BLOCK_N: tl.constexpr
):  # fmt: skip
    group = tl.program_id(0) // T
    rows = (tl.program_id(0) + tl.arange(0, 1)[:, None]).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)[None, :]
    c1 = tl.zeros((1, BLOCK_N), dtype=RSTD.dtype.element_ty)
    c2 = tl.zeros((1, BLOCK_N), dtype=RSTD.dtype.element_ty)
    for start in tl.range(0, N, BLOCK_N, num_stages=3):
        at = start + cols
        w = _load_weight(W, group.to(tl.int64) * N + at, at < N, offset, RSTD.dtype.element_ty)
        xhat, _, g, _ = _load_bwd(
            S, W, DY, MEAN, RSTD, w, rows, at, rows >= 0, stride_s, stride_dy, N
        )
        c1 += g * xhat
        c2 += g
    tl.store(C1 + rows, tl.sum(c1, axis=1, keep_dims=True) / N)
    if MEAN is not None:
        tl.store(C2 + rows, tl.sum(c2, axis=1, keep_dims=True) / N)


@triton.jit
def _wide_bwd_kernel(
    S, W, DY, DS, DX, MEAN, RSTD, C1, C2, SUMS, stride_s, stride_dy, stride_ds, N, T, P, offset,
    CAST: tl.constexpr, DW: tl.constexpr, DB: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group, p = tl.program_id(1) // P, tl.program_id(1) % P
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    w = _load_weight(W, group.to(tl.int64) * N + cols, cols < N, offset, RSTD.dtype.element_ty)
    dw = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)
    db = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)
    tiles = tl.cdiv(T, BLOCK_M)
    for tile in tl.range(p, tiles, P, num_stages=3):
        # the last rows first: the means left them in L2
        local = (tiles - 1 - tile) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        rows, valid = group.to(tl.int64) * T + local, local < T
        xhat, dy, g, rstd = _load_bwd(
            S, W, DY, MEAN, RSTD, w, rows, cols, valid, stride_s, stride_dy, N
        )
        if DX is not None:
            dx = g - xhat * tl.load(C1 + rows, mask=valid, other=0.0)
            if MEAN is not None:
                dx -= tl.load(C2 + rows, mask=valid, other=0.0)
            _store_dx(dx * rstd, DS, DX, rows, cols, valid, stride_ds, N)
        if DW:
            dw += dy * _rounded(xhat, S, CAST)
        if DB:
            db += dy

    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    _store_sums(dw, db, SUMS, tl.program_id(1), tl.num_programs(1), cols, N, DW, DB)
