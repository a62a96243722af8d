"""What every rotary embedding refuses, before any launch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["check", "check_choices"]

LAYOUTS = ("half", "interleaved")
TABLE_LAYOUTS = (*LAYOUTS, "pairs")
ROUNDINGS = ("once", "each")
REAL: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
INTEGER = (torch.int32, torch.int64)
# what is not real
KINDS: dict[str, tuple[torch.dtype, ...]] = {"freqs": COMPLEX, "position_ids": INTEGER}


def check(
    op: str,
    q: Tensor,
    k: Tensor | None,
    tables: Mapping[str, Tensor],
    rows: Sequence[int],
    R: int,
    unsqueeze_dim: int,
) -> int:
    """The dimension of q and k that counts heads.

    Args:
        op: name in messages.
        tables: by name, what the angles come from.
        rows: sizes of the tables as they are used, without the last: (T,), (1, T) or (B, T).
        R: rotated dimensions.
        unsqueeze_dim: where tables of these rows get the dimension of the heads.

    Raises:
        ValueError: shapes or devices that do not fit, tables that require a gradient.
        TypeError: an unsupported dtype.
    """
    # one tensor alone is checked as if it were both
    key = q if k is None else k
    head_dim = q.ndim - len(rows) - 2 + unsqueeze_dim
    problem = _misfit(q.shape, key.shape, rows, R, head_dim)
    if problem:
        named = {"q": q, "k": key, **tables}
        shapes = ", ".join([f"{name} {tuple(x.shape)}" for name, x in named.items()])
        raise ValueError(f"{op}: {problem}: {shapes}, unsqueeze_dim {unsqueeze_dim}")
    device = q.device
    for name, x in (("q", q), ("k", key), *tables.items()):
        dtypes = KINDS.get(name, REAL)
        if x.dtype not in dtypes:
            known = ", ".join([str(dtype) for dtype in dtypes])
            raise TypeError(f"{op}: {name} {tuple(x.shape)} is {x.dtype}, must be one of {known}")
        if x.device != device:
            raise ValueError(f"{op}: q is on {device}, {name} on {x.device}")
        if x.requires_grad and name in tables:
            raise ValueError(f"{op}: {name} gets no gradient; detach it")
    return head_dim


def _misfit(q: Sequence[int], k: Sequence[int], rows: Sequence[int], R: int, head_dim: int) -> str:
    """What is wrong with these shapes, or nothing."""
    rank = len(q)
    if rank not in (3, 4) or len(k) != rank:
        return "q and k must have four dimensions, or three without a batch"
    if not 1 <= len(rows) <= rank - 2:
        return "cos[position_ids], or cos, must be [T, R] or, with a batch, [B or 1, T, R]"
    if head_dim not in (rank - 3, rank - 2):
        return "unsqueeze_dim must be where cos gets the dimension of the heads"
    if q[:head_dim] != k[:head_dim] or q[head_dim + 1 :] != k[head_dim + 1 :]:
        return "q and k must differ in heads only"
    T, D = q[2 * rank - 5 - head_dim], q[-1]
    # no `in (1, q[0])`, which Dynamo gets wrong of traced sizes
    if rows[-1] != T or (len(rows) == 2 and rows[0] != 1 and rows[0] != q[0]):
        return f"there must be angles for T = {T} tokens, of every or one batch"
    if R % 2 or not 0 < R <= D:
        return f"the rotated width R = {R} must be even and at most D = {D}"
    return ""


def check_choices(op: str, layout: str, out_layout: str, table_layout: str, rounding: str) -> None:
    """Raises ValueError unless each is a known one."""
    known = layout in LAYOUTS and out_layout in LAYOUTS and table_layout in TABLE_LAYOUTS
    if known and rounding in ROUNDINGS:
        return
    for name, value, choices in (
        ("layout", layout, LAYOUTS),
        ("out_layout", out_layout, LAYOUTS),
        ("table_layout", table_layout, TABLE_LAYOUTS),
        ("rounding", rounding, ROUNDINGS),
    ):
        if value not in choices:
            raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, not {value!r}")
