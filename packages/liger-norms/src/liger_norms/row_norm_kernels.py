"""Kernels of `row_norm`; its docstring has the formulas and the sizes."""

from liger_core.lang import tl, triton

__all__ = [
    "_rounded",
    "_row_norm_bwd_kernel",
    "_row_norm_fwd_kernel",
    "_wide_bwd_kernel",
    "_wide_means_kernel",
]


@triton.jit
def _row_norm_fwd_kernel(
    X, RESIDUAL, W, B, S, Y, MEAN, RSTD, stride_x, stride_r, M, N, T, eps, offset,
    CAST: tl.constexpr, GROUPED: tl.constexpr, HELD: tl.constexpr, TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # loads in flight, as far as the registers go
    UNROLL: tl.constexpr = 4 if RESIDUAL is None else 2
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)[None, :]
    # where the weights of these rows begin
    first = tl.minimum(rows, M - 1) // T * N if GROUPED else tl.zeros((1, 1), dtype=tl.int64)

    # the first tiles of a row stay in registers; those that a wide row has beyond are read again
    held = ()
    for tile in tl.static_range(HELD):
        at = tile * BLOCK_N + cols
        s = _load_sum(X, RESIDUAL, S, RSTD, rows, at, stride_x, stride_r, M, N)
        held = _append(held, s)
    mean = 0.0
    if MEAN is not None:
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)
        for tile in tl.static_range(HELD):
            total += held[tile]
        for tile in tl.range(HELD, TILES, loop_unroll_factor=UNROLL):
            at = tile * BLOCK_N + cols
            total += _load_sum(X, RESIDUAL, S, RSTD, rows, at, stride_x, stride_r, M, N)
        mean = tl.sum(total, axis=1, keep_dims=True) / N
        tl.store(MEAN + rows, mean, mask=rows < M)
    square = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)
    for tile in tl.static_range(HELD):
        square += _squared(held[tile], mean, MEAN, tile * BLOCK_N + cols, N)
    for tile in tl.range(HELD, TILES, loop_unroll_factor=UNROLL):
        at = tile * BLOCK_N + cols
        s = _load_sum(X, RESIDUAL, S, RSTD, rows, at, stride_x, stride_r, M, N)
        square += _squared(s, mean, MEAN, at, N)
    rstd = tl.rsqrt(tl.sum(square, axis=1, keep_dims=True) / N + tl.cast(eps, tl.float32))
    tl.store(RSTD + rows, rstd, mask=rows < M)

    WIDE: tl.constexpr = TILES > HELD
    for tile in tl.static_range(HELD):
        at = tile * BLOCK_N + cols
        _store_y(held[tile], mean, rstd, W, B, S, Y, X, rows, at, first, offset, M, N, CAST, WIDE)
    # last tile first: it is the one most likely still in the cache
    for back in tl.range(1, TILES - HELD + 1, loop_unroll_factor=UNROLL):
        at = (TILES - back) * BLOCK_N + cols
        s = _load_sum(X, RESIDUAL, S, RSTD, rows, at, stride_x, stride_r, M, N)
        _store_y(s, mean, rstd, W, B, S, Y, X, rows, at, first, offset, M, N, CAST, WIDE)


@triton.jit
def _append(tiles, tile):
    """A tuple of tiles, and one more."""
    tiles += (tile,)
    return tiles


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
    CAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # results and weights need no room in the caches that hold a wide row between its readings
    EVICT: tl.constexpr = "evict_first" if WIDE else ""
    CACHE: tl.constexpr = ".cg" if WIDE else ""
    mask = (rows < M) & (cols < N)
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
        y *= _load_weight(W, first + cols, cols < N, offset, s.dtype, CACHE)
    if B is not None:
        b = tl.load(B + first + cols, mask=cols < N, other=0.0, cache_modifier=CACHE)
        y += b.to(s.dtype)
    tl.store(Y + rows * N + cols, y.to(Y.dtype.element_ty), mask=mask, eviction_policy=EVICT)


@triton.jit
def _row_norm_bwd_kernel(
    S, W, DY, DS, DX, MEAN, RSTD, SUMS, stride_s, stride_dy, stride_ds, N, T, P, offset,
    CAST: tl.constexpr, DW: tl.constexpr, DB: tl.constexpr,
    TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    acc = RSTD.dtype.element_ty
    group, p = tl.program_id(0) // P, tl.program_id(0) % P
    cols = tl.arange(0, BLOCK_N)[None, :]
    first = group.to(tl.int64) * N
    zero = tl.zeros((BLOCK_M, BLOCK_N), dtype=acc)
    w, dw, db = (), (), ()
    for i in tl.static_range(TILES):
        at = i * BLOCK_N + cols
        w = _append(w, _load_weight(W, first + at, at < N, offset, acc, ""))
        dw, db = _append(dw, zero), _append(db, zero)

    for tile in tl.range(p, tl.cdiv(T, BLOCK_M), P, num_stages=STAGES):
        local = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        rows, valid = group.to(tl.int64) * T + local, local < T
        mean, rstd = _load_stats(MEAN, RSTD, rows, valid)
        xhat, dy, g, products = (), (), (), ()
        for i in tl.static_range(TILES):
            at = i * BLOCK_N + cols
            if TILES * BLOCK_N > 8192:
                # registers are short: the weight comes from the cache each time
                w_i = _load_weight(W, first + at, at < N, offset, acc, "")
            else:
                w_i = w[i]
            xhat_i, dy_i, g_i = _load_bwd(
                S, W, DY, MEAN, mean, rstd, w_i, rows, at, valid, stride_s, stride_dy, N
            )
            xhat, dy, g = _append(xhat, xhat_i), _append(dy, dy_i), _append(g, g_i)
            products = _append(products, g_i * xhat_i)
        c1, c2 = _mean(products, N, TILES), _mean(g, N, TILES)
        dw_next, db_next = (), ()
        for i in tl.static_range(TILES):
            if DX is not None:
                at = i * BLOCK_N + cols
                dx = _dx(g[i], xhat[i], c1, c2, rstd, MEAN)
                _store_dx(dx, DS, DX, rows, at, valid, stride_ds, N)
            dw_next = _append(dw_next, dw[i] + dy[i] * _rounded(xhat[i], S, CAST))
            db_next = _append(db_next, db[i] + dy[i])
        dw, db = dw_next, db_next

    for i in tl.static_range(TILES):
        at = i * BLOCK_N + tl.arange(0, BLOCK_N)
        _store_sums(dw[i], db[i], SUMS, tl.program_id(0), tl.num_programs(0), at, N, DW, DB)


@triton.jit
def _load_stats(MEAN, RSTD, rows, valid):
    mean = 0.0
    if MEAN is not None:
        mean = tl.load(MEAN + rows, mask=valid, other=0.0)
    return mean, tl.load(RSTD + rows, mask=valid, other=0.0)


@triton.jit
def _load_weight(W, at, inside, offset, acc: tl.constexpr, CACHE: tl.constexpr):
    w = tl.full((), 1.0, acc)
    if W is not None:
        w = tl.load(W + at, mask=inside, other=0.0, cache_modifier=CACHE).to(acc)
        if offset is not None:
            w += tl.cast(offset, tl.float32)
    return w


@triton.jit
def _load_bwd(S, W, DY, MEAN, mean, rstd, w, rows, cols, valid, stride_s, stride_dy, N):
    mask = valid & (cols < N)
    xhat = tl.load(S + rows * stride_s + cols, mask=mask, other=0.0).to(rstd.dtype) * rstd
    if MEAN is not None:
        # not 0 beyond the row, where dy is
        xhat -= mean * rstd
    dy = tl.load(DY + rows * stride_dy + cols, mask=mask, other=0.0).to(rstd.dtype)
    g = dy
    if W is not None:
        g *= w
    return xhat, dy, g


@triton.jit
def _mean(tiles, N, TILES: tl.constexpr):
    """Of each row, over all its tiles."""
    total = tiles[0]
    for i in tl.static_range(1, TILES):
        total += tiles[i]
    return tl.sum(total, axis=1, keep_dims=True) / N


@triton.jit
def _dx(g, xhat, c1, c2, rstd, MEAN):
    """rstd * (g - c2 - xhat * c1), with the products of two numbers of the row formed first."""
    dx = xhat * (c1 * rstd)
    if MEAN is not None:
        dx += c2 * rstd
    return g * rstd - dx


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
    acc = RSTD.dtype.element_ty
    group = tl.program_id(0) // T
    rows = (tl.program_id(0) + tl.arange(0, 1)[:, None]).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)[None, :]
    c1 = tl.zeros((1, BLOCK_N), dtype=acc)
    c2 = tl.zeros((1, BLOCK_N), dtype=acc)
    mean, rstd = _load_stats(MEAN, RSTD, rows, rows >= 0)
    for start in tl.range(0, N, BLOCK_N, num_stages=3):
        at = start + cols
        w = _load_weight(W, group.to(tl.int64) * N + at, at < N, offset, acc, "")
        xhat, _, g = _load_bwd(
            S, W, DY, MEAN, mean, rstd, w, rows, at, rows >= 0, stride_s, stride_dy, N
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
    blocks = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0) // blocks
    group, p = program // P, program % P
    first = tl.program_id(0) % blocks * BLOCK_N
    cols = first + tl.arange(0, BLOCK_N)[None, :]
    w = _load_weight(W, group.to(tl.int64) * N + cols, cols < N, offset, RSTD.dtype.element_ty, "")
    dw = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)
    db = tl.zeros((BLOCK_M, BLOCK_N), dtype=RSTD.dtype.element_ty)
    tiles = tl.cdiv(T, BLOCK_M)
    for tile in tl.range(p, tiles, P, num_stages=3):
        # the last rows first: the means left them in L2
        local = (tiles - 1 - tile) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        rows, valid = group.to(tl.int64) * T + local, local < T
        mean, rstd = _load_stats(MEAN, RSTD, rows, valid)
        xhat, dy, g = _load_bwd(
            S, W, DY, MEAN, mean, rstd, w, rows, cols, valid, stride_s, stride_dy, N
        )
        if DX is not None:
            c1, c2 = tl.load(C1 + rows, mask=valid, other=0.0), 0.0
            if MEAN is not None:
                c2 = tl.load(C2 + rows, mask=valid, other=0.0)
            # not multiplied out, which takes more registers
            _store_dx((g - c2 - xhat * c1) * rstd, DS, DX, rows, cols, valid, stride_ds, N)
        if DW:
            dw += dy * _rounded(xhat, S, CAST)
        if DB:
            db += dy

    cols = first + tl.arange(0, BLOCK_N)
    _store_sums(dw, db, SUMS, program, tl.num_programs(0) // blocks, cols, N, DW, DB)
