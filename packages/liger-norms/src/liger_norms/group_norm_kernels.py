"""The kernel pair under `group_norm`, whose file has the formulas.

A group is D rows of S elements, cut into tiles of BLOCK_D by BLOCK_S: of a row that is wider than a
tile (ALONG) or else of whole rows. A part of a group is EACH neighbouring ones of its, or its
row's, TILES. STATS reduces them, APPLY takes them again for the result; one launch does both where
a part is a whole group, else the first leaves what it found in PARTS.

    grid (GROUPS / BLOCK_G times rows, if ALONG, parts of each); GROUPS = B G
    tiles [BLOCK_G, BLOCK_D, BLOCK_S]; X, Y, DX, DY [GROUPS D, S]; W, B [C]; MEAN, RSTD [GROUPS]
    PARTS [GROUPS, parts, 3 or 2]; DW, DB [B, parts of a row, C], C = G D
"""

from liger_core.lang import tl, triton

__all__ = ["_group_norm_bwd_kernel", "_group_norm_fwd_kernel"]


@triton.jit
def _group_norm_fwd_kernel(
    X, W, B, Y, MEAN, RSTD, PARTS, GROUPS, G, D, S, TILES, EACH, eps,
    STATS: tl.constexpr, APPLY: tl.constexpr, ONE: tl.constexpr, ALONG: tl.constexpr,
    BLOCK_PARTS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    acc = MEAN.dtype.element_ty
    group, row, k = _program(GROUPS, BLOCK_G, STATS)
    groups = group + tl.arange(0, BLOCK_G)[:, None, None]
    part, parts, first, last = _part(row, k, D, TILES, EACH, ALONG)
    at, channel, rows, mask, n = _tile(
        first, group, row, GROUPS, G, D, S, ALONG, BLOCK_G, BLOCK_D, BLOCK_S
    )
    x = tl.load(X + at, mask=mask, other=0.0).to(acc)
    if STATS:
        n = n.to(acc)
        shift = _sum(x) / n
        total = tl.where(mask, x - shift, 0.0)
        square = total * total
        if not ONE:
            for t in tl.range(first + 1, last, num_stages=STAGES):
                at_t, _, _, mask_t, n_t = _tile(
                    t, group, row, GROUPS, G, D, S, ALONG, BLOCK_G, BLOCK_D, BLOCK_S
                )
                centred = tl.load(X + at_t, mask=mask_t, other=0.0).to(acc) - shift
                centred = tl.where(mask_t, centred, 0.0)
                total += centred
                square += centred * centred
                n += n_t.to(acc)
        total = _sum(total)
        mean, square = shift + total / n, _sum(square) - total * total / n
    else:
        n, mean, square = _merged(PARTS + group.to(tl.int64) * parts * 3, parts, BLOCK_PARTS)
    if APPLY:
        rstd = tl.rsqrt(tl.maximum(square, 0.0) / n + tl.cast(eps, tl.float32))
        if part == 0:
            tl.store(MEAN + groups, tl.zeros_like(groups) + mean, mask=groups < GROUPS)
            tl.store(RSTD + groups, tl.zeros_like(groups) + rstd, mask=groups < GROUPS)
        if ONE:
            _store_y((x - mean) * rstd, W, B, Y, at, channel, rows, mask)
        else:
            for t in tl.range(first, last, num_stages=STAGES):
                at, channel, rows, mask, _ = _tile(
                    t, group, row, GROUPS, G, D, S, ALONG, BLOCK_G, BLOCK_D, BLOCK_S
                )
                x = tl.load(X + at, mask=mask, other=0.0).to(acc)
                _store_y((x - mean) * rstd, W, B, Y, at, channel, rows, mask)
    else:
        at = PARTS + (groups.to(tl.int64) * parts + part) * 3
        tl.store(at, tl.zeros_like(mean) + n)
        tl.store(at + 1, mean)
        tl.store(at + 2, square)


@triton.jit
def _program(GROUPS, BLOCK_G: tl.constexpr, STATS: tl.constexpr):
    """First group, row and part of a program."""
    at, k = tl.program_id(0), tl.program_id(1)
    if not STATS:
        # the last ones first: the reduction left them in L2
        at, k = tl.num_programs(0) - 1 - at, tl.num_programs(1) - 1 - k
    blocks = tl.cdiv(GROUPS, BLOCK_G)
    return at % blocks * BLOCK_G, at // blocks, k


@triton.jit
def _part(row, k, D, TILES, EACH, ALONG: tl.constexpr):
    """Which part of its groups a program has, of how many; its first tile and the one after its
    last.
    """
    along = tl.num_programs(1).to(tl.int64)
    first = (k.to(tl.int64) * EACH).to(tl.int32)
    parts = D * along if ALONG else along
    return row * along + k, parts, first, tl.minimum(first + EACH, TILES)


@triton.jit
def _tile(
    t, group, row, GROUPS, G, D, S, ALONG: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Of tile t of a row, or of each of the groups: offsets, channels and their mask
    [BLOCK_G, BLOCK_D, 1], mask, and the elements that it has of a group.
    """
    if ALONG:
        d0, s0 = row, t * BLOCK_S
    else:
        d0, s0 = t * BLOCK_D, 0
    g = tl.arange(0, BLOCK_G)[:, None, None]
    d = tl.arange(0, BLOCK_D)[None, :, None]
    s = tl.arange(0, BLOCK_S)[None, None, :]
    at = ((group + g).to(tl.int64) * D + d0 + d) * S + s0 + s
    rows = (group + g < GROUPS) & (d0 + d < D)
    n = tl.minimum(D - d0, BLOCK_D) * tl.minimum(S - s0, BLOCK_S)
    channel = ((group + g) % G).to(tl.int64) * D + d0 + d
    return at, channel, rows, rows & (s0 + s < S), n


@triton.jit
def _sum(x):
    """Over a group: [BLOCK_G, BLOCK_D, BLOCK_S] -> [BLOCK_G, 1, 1]."""
    return tl.sum(tl.sum(x, axis=2, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
def _merged(PARTS, parts, BLOCK_PARTS: tl.constexpr):
    """Count, mean and centred squares of a group from those of its parts. Scalars: a tensor would
    bring the layout of the parts to a tile, all of which each thread then has.
    """
    k = tl.arange(0, BLOCK_PARTS)
    n = tl.load(PARTS + k * 3, mask=k < parts, other=0.0)
    means = tl.load(PARTS + k * 3 + 1, mask=k < parts, other=0.0)
    squares = tl.load(PARTS + k * 3 + 2, mask=k < parts, other=0.0)
    shift = tl.load(PARTS + 1)
    count = tl.sum(n, axis=0)
    mean = shift + tl.sum(n * (means - shift), axis=0) / count
    return count, mean, tl.sum(squares + n * (means - mean) * (means - mean), axis=0)


@triton.jit
def _lookup(P, at, mask, dtype: tl.constexpr):
    """P[at], of a few channels or groups."""
    # a scalar where it is one: of a tensor, a thread loads as many copies as it has of a tile
    one: tl.constexpr = at.numel == 1
    value = tl.load(P + tl.max(at)) if one else tl.load(P + at, mask=mask, other=0.0)
    return value.to(dtype)


@triton.jit
def _store_y(y, W, B, Y, at, channel, rows, mask):
    if W is not None:
        y *= _lookup(W, channel, rows, y.dtype)
    if B is not None:
        y += _lookup(B, channel, rows, y.dtype)
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm_bwd_kernel(
    X, W, DY, DX, MEAN, RSTD, DW, DB, PARTS, GROUPS, G, C, D, S, L, TILES, EACH,
    STATS: tl.constexpr, APPLY: tl.constexpr, ONE: tl.constexpr, ALONG: tl.constexpr,
    BLOCK_PARTS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    group, row, k = _program(GROUPS, BLOCK_G, STATS)
    groups = group + tl.arange(0, BLOCK_G)[:, None, None]
    part, parts, first, last = _part(row, k, D, TILES, EACH, ALONG)
    acc = MEAN.dtype.element_ty
    mean = _lookup(MEAN, groups, groups < GROUPS, acc)
    rstd = _lookup(RSTD, groups, groups < GROUPS, acc)
    at, channel, rows, mask, _n = _tile(
        first, group, row, GROUPS, G, D, S, ALONG, BLOCK_G, BLOCK_D, BLOCK_S
    )
    xhat, dy, w = _load_bwd(X, W, DY, mean, rstd, at, channel, rows, mask)
    if STATS:
        sums_at = (groups // G).to(tl.int64) * C
        if ALONG:
            sums_at = ((groups // G).to(tl.int64) * tl.num_programs(1) + k) * C
        dw, db = dy * xhat, dy
        if ALONG and not ONE:
            for t in tl.range(first + 1, last, num_stages=STAGES):
                at_t, _, _, mask_t, _ = _tile(
                    t, group, row, GROUPS, G, D, S, ALONG, BLOCK_G, BLOCK_D, BLOCK_S
                )
                xhat_t, dy_t, w = _load_bwd(X, W, DY, mean, rstd, at_t, channel, rows, mask_t)
                dw += dy_t * xhat_t
                db += dy_t
        c1, c2 = _sums(dw, db, w, DW, DB, sums_at + channel, rows)
        if not ONE and not ALONG:
            for t in tl.range(first + 1, last, num_stages=STAGES):
                at_t, channel, rows, mask_t, _ = _tile(
                    t, group, row, GROUPS, G, D, S, ALONG, BLOCK_G, BLOCK_D, BLOCK_S
                )
                xhat_t, dy_t, w_t = _load_bwd(X, W, DY, mean, rstd, at_t, channel, rows, mask_t)
                c1_t, c2_t = _sums(dy_t * xhat_t, dy_t, w_t, DW, DB, sums_at + channel, rows)
                c1 += c1_t
                c2 += c2_t
        c1, c2 = _sum(c1), _sum(c2)
        if PARTS is not None:
            at_part = PARTS + (groups.to(tl.int64) * parts + part) * 2
            tl.store(at_part, c1)
            tl.store(at_part + 1, c2)
    else:
        c1, c2 = _added(PARTS + group.to(tl.int64) * parts * 2, parts, BLOCK_PARTS)
    if APPLY:
        c1, c2 = c1 / L, c2 / L
        if ONE:
            dx = rstd * (dy * w - c2 - xhat * c1)
            tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=mask)
        else:
            for t in tl.range(first, last, num_stages=STAGES):
                at, channel, rows, mask, _ = _tile(
                    t, group, row, GROUPS, G, D, S, ALONG, BLOCK_G, BLOCK_D, BLOCK_S
                )
                xhat, dy, w = _load_bwd(X, W, DY, mean, rstd, at, channel, rows, mask)
                dx = rstd * (dy * w - c2 - xhat * c1)
                tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=mask)


@triton.jit
def _added(PARTS, parts, BLOCK_PARTS: tl.constexpr):
    """Both sums of a group from those of its parts; scalars, as in `_merged`."""
    k = tl.arange(0, BLOCK_PARTS)
    c1 = tl.load(PARTS + k * 2, mask=k < parts, other=0.0)
    c2 = tl.load(PARTS + k * 2 + 1, mask=k < parts, other=0.0)
    return tl.sum(c1, axis=0), tl.sum(c2, axis=0)


@triton.jit
def _load_bwd(X, W, DY, mean, rstd, at, channel, rows, mask):
    """xhat, dy and w; xhat is not 0 outside of the mask, dy is."""
    xhat = (tl.load(X + at, mask=mask, other=0.0).to(rstd.dtype) - mean) * rstd
    dy = tl.load(DY + at, mask=mask, other=0.0).to(rstd.dtype)
    w = 1.0
    if W is not None:
        w = _lookup(W, channel, rows, rstd.dtype)
    return xhat, dy, w


@triton.jit
def _sums(dw, db, w, DW, DB, at, rows):
    """Sums of g * xhat and g over positions, [BLOCK_G, BLOCK_D, 1]; without w they go to DW, DB."""
    dw = tl.sum(dw, axis=2, keep_dims=True)
    db = tl.sum(db, axis=2, keep_dims=True)
    if DW is not None:
        tl.store(DW + at, dw, mask=rows)
    if DB is not None:
        tl.store(DB + at, db, mask=rows)
    return dw * w, db * w
