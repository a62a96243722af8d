"""The kernel pair under `group_norm`, whose file has the formulas.

A group is D rows of S elements, cut into tiles of BLOCK_D by BLOCK_S, of which each of SPLITS
programs has some. STATS reduces them, APPLY reads them again for the result; one launch does both
where a program has whole groups, else the first leaves what it found in PARTS.

    tiles [BLOCK_G, BLOCK_D, BLOCK_S]; X, Y, DX, DY [GROUPS D, S]; W, B [C]; MEAN, RSTD [GROUPS]
    GROUPS = B G, C = G D; PARTS [GROUPS, SPLITS, 3 or 2]; DW, DB [B, tiles across S, C]
"""

from liger_core.lang import tl, triton

__all__ = ["_group_norm_bwd_kernel", "_group_norm_fwd_kernel"]


@triton.jit
def _group_norm_fwd_kernel(
    X, W, B, Y, MEAN, RSTD, PARTS, GROUPS, G, D, S, TILES, SPLITS, eps,
    STATS: tl.constexpr, APPLY: tl.constexpr, ONE: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    acc = MEAN.dtype.element_ty
    groups, split, first, last = _part(TILES, SPLITS, BLOCK_G)
    at, channel, rows, mask, n = _tile(first, groups, GROUPS, G, D, S, BLOCK_D, BLOCK_S)
    x = tl.load(X + at, mask=mask, other=0.0).to(acc)
    if STATS:
        n = n.to(acc)
        shift = _sum(x) / n
        total = tl.where(mask, x - shift, 0.0)
        square = total * total
        if not ONE:
            for t in tl.range(first + 1, last, num_stages=STAGES):
                at_t, _, _, mask_t, n_t = _tile(t, groups, GROUPS, G, D, S, BLOCK_D, BLOCK_S)
                centred = tl.load(X + at_t, mask=mask_t, other=0.0).to(acc) - shift
                centred = tl.where(mask_t, centred, 0.0)
                total += centred
                square += centred * centred
                n += n_t.to(acc)
        total = _sum(total)
        mean, square = shift + total / n, _sum(square) - total * total / n
    else:
        n, mean, square = _merged(PARTS, groups, SPLITS, BLOCK_SPLITS)
    if APPLY:
        rstd = tl.rsqrt(tl.maximum(square, 0.0) / n + tl.cast(eps, tl.float32))
        if split == 0:
            tl.store(MEAN + groups, mean, mask=groups < GROUPS)
            tl.store(RSTD + groups, rstd, mask=groups < GROUPS)
        if ONE:
            _store_y((x - mean) * rstd, W, B, Y, at, channel, rows, mask)
        else:
            for t in tl.range(first, last, num_stages=STAGES):
                at, channel, rows, mask, _ = _tile(t, groups, GROUPS, G, D, S, BLOCK_D, BLOCK_S)
                x = tl.load(X + at, mask=mask, other=0.0).to(acc)
                _store_y((x - mean) * rstd, W, B, Y, at, channel, rows, mask)
    else:
        at = PARTS + (groups.to(tl.int64) * SPLITS + split) * 3
        tl.store(at, tl.zeros_like(mean) + n)
        tl.store(at + 1, mean)
        tl.store(at + 2, square)


@triton.jit
def _part(TILES, SPLITS, BLOCK_G: tl.constexpr):
    """A program's groups [BLOCK_G, 1, 1], which part of them it has, and the tiles of that."""
    split = tl.program_id(0) % SPLITS
    groups = tl.program_id(0) // SPLITS * BLOCK_G + tl.arange(0, BLOCK_G)[:, None, None]
    each = tl.cdiv(TILES, SPLITS)
    first = (split.to(tl.int64) * each).to(tl.int32)
    return groups, split, first, tl.minimum(first + each, TILES)


@triton.jit
def _tile(t, groups, GROUPS, G, D, S, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):
    """Of tile t of each group: offsets, channels and their mask [BLOCK_G, BLOCK_D, 1], mask, and
    the elements that it has of a group.
    """
    across = tl.cdiv(S, BLOCK_S)
    d0, s0 = t // across * BLOCK_D, t % across * BLOCK_S
    d = d0 + tl.arange(0, BLOCK_D)[None, :, None]
    s = s0 + tl.arange(0, BLOCK_S)[None, None, :]
    at = (groups.to(tl.int64) * D + d) * S + s
    rows = (groups < GROUPS) & (d < D)
    n = tl.minimum(D - d0, BLOCK_D) * tl.minimum(S - s0, BLOCK_S)
    return at, (groups.to(tl.int64) % G) * D + d, rows, rows & (s < S), n


@triton.jit
def _sum(x):
    """Over a group: [BLOCK_G, BLOCK_D, BLOCK_S] -> [BLOCK_G, 1, 1]."""
    return tl.sum(tl.sum(x, axis=2, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
def _merged(PARTS, groups, SPLITS, BLOCK_SPLITS: tl.constexpr):
    """Count, mean and centred squares of a group from those of its parts."""
    k = tl.arange(0, BLOCK_SPLITS)[None, None, :]
    at = PARTS + (groups.to(tl.int64) * SPLITS + k) * 3
    n = tl.load(at, mask=k < SPLITS, other=0.0)
    means = tl.load(at + 1, mask=k < SPLITS, other=0.0)
    squares = tl.load(at + 2, mask=k < SPLITS, other=0.0)
    shift = tl.load(PARTS + groups.to(tl.int64) * SPLITS * 3 + 1)
    count = _sum(n)
    mean = shift + _sum(n * (means - shift)) / count
    return count, mean, _sum(squares + n * (means - mean) * (means - mean))


@triton.jit
def _store_y(y, W, B, Y, at, channel, rows, mask):
    if W is not None:
        y *= tl.load(W + channel, mask=rows, other=0.0).to(y.dtype)
    if B is not None:
        y += tl.load(B + channel, mask=rows, other=0.0).to(y.dtype)
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm_bwd_kernel(
    X, W, DY, DX, MEAN, RSTD, DW, DB, PARTS, GROUPS, G, C, D, S, L, TILES, SPLITS,
    STATS: tl.constexpr, APPLY: tl.constexpr, ONE: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    groups, split, first, last = _part(TILES, SPLITS, BLOCK_G)
    mean = tl.load(MEAN + groups, mask=groups < GROUPS, other=0.0)
    rstd = tl.load(RSTD + groups, mask=groups < GROUPS, other=0.0)
    at, channel, rows, mask, _ = _tile(first, groups, GROUPS, G, D, S, BLOCK_D, BLOCK_S)
    xhat, dy, w = _load_bwd(X, W, DY, mean, rstd, at, channel, rows, mask)
    if STATS:
        c1, c2 = _sums(xhat, dy, w, DW, DB, first, groups, G, C, S, channel, rows, BLOCK_S)
        if not ONE:
            for t in tl.range(first + 1, last, num_stages=STAGES):
                at_t, channel, rows, mask_t, _ = _tile(t, groups, GROUPS, G, D, S, BLOCK_D, BLOCK_S)
                xhat_t, dy_t, w_t = _load_bwd(X, W, DY, mean, rstd, at_t, channel, rows, mask_t)
                c1_t, c2_t = _sums(
                    xhat_t, dy_t, w_t, DW, DB, t, groups, G, C, S, channel, rows, BLOCK_S
                )
                c1 += c1_t
                c2 += c2_t
        c1, c2 = _sum(c1), _sum(c2)
        if PARTS is not None:
            parts = PARTS + (groups.to(tl.int64) * SPLITS + split) * 2
            tl.store(parts, c1)
            tl.store(parts + 1, c2)
    else:
        k = tl.arange(0, BLOCK_SPLITS)[None, None, :]
        parts = PARTS + (groups.to(tl.int64) * SPLITS + k) * 2
        c1 = _sum(tl.load(parts, mask=k < SPLITS, other=0.0))
        c2 = _sum(tl.load(parts + 1, mask=k < SPLITS, other=0.0))
    if APPLY:
        c1, c2 = c1 / L, c2 / L
        if ONE:
            dx = rstd * (dy * w - c2 - xhat * c1)
            tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=mask)
        else:
            for t in tl.range(first, last, num_stages=STAGES):
                at, channel, rows, mask, _ = _tile(t, groups, GROUPS, G, D, S, BLOCK_D, BLOCK_S)
                xhat, dy, w = _load_bwd(X, W, DY, mean, rstd, at, channel, rows, mask)
                dx = rstd * (dy * w - c2 - xhat * c1)
                tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=mask)


@triton.jit
def _load_bwd(X, W, DY, mean, rstd, at, channel, rows, mask):
    """xhat, dy and w; xhat is not 0 outside of the mask, dy is."""
    xhat = (tl.load(X + at, mask=mask, other=0.0).to(rstd.dtype) - mean) * rstd
    dy = tl.load(DY + at, mask=mask, other=0.0).to(rstd.dtype)
    w = 1.0
    if W is not None:
        w = tl.load(W + channel, mask=rows, other=0.0).to(rstd.dtype)
    return xhat, dy, w


@triton.jit
def _sums(xhat, dy, w, DW, DB, t, groups, G, C, S, channel, rows, BLOCK_S: tl.constexpr):
    """Sums of g * xhat and g over the positions of a tile, [BLOCK_G, BLOCK_D, 1]. Without w they go
    to DW and DB, where each tile of the positions of a sample has a row of C.
    """
    dw = tl.sum(dy * xhat, axis=2, keep_dims=True)
    db = tl.sum(dy, axis=2, keep_dims=True)
    across = tl.cdiv(S, BLOCK_S)
    at = ((groups // G).to(tl.int64) * across + t % across) * C + channel
    if DW is not None:
        tl.store(DW + at, dw, mask=rows)
    if DB is not None:
        tl.store(DB + at, db, mask=rows)
    return dw * w, db * w
