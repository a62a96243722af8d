"""rope in other conventions, on given positions, and without a batch."""

from functools import partial
from pathlib import Path

import torch
from liger_core.testing import BenchCase, OpSpec, load_module, replace
from liger_rope.rope import rope, rope_ref

common = load_module(Path(__file__).with_name("specs.py"))


def rows_of_a_cache(new, shape):
    """Packed sequences: positions start anew within a row; int32 as well as int64 ones."""
    B, heads, T, D = shape
    N = T + 2
    position_ids = (torch.arange(T, device=new.device) % 3).expand(B, T) + new.integers(2, B, T)
    return {
        "q": new.normal(B, heads, T, D),
        "k": new.normal(B, 2 * heads, T, D),
        **common.tables(new, N, D // 4 * 2 or 2),
        "position_ids": position_ids.int() if B == 1 else position_ids,
    }


def patches(new, shape):
    """A vision transformer's: no batch, tables in fp32 whatever the dtype of q and k."""
    T, heads, D = shape
    wide = {
        name: x.to(torch.promote_types(x.dtype, torch.float32))
        for name, x in common.tables(new, T, D).items()
    }
    return {"q": new.normal(T, 3 * heads, D), "k": new.normal(T, heads, D), **wide}


GLM = {"layout": "interleaved", "table_layout": "half"}
OPTIONS = (
    {"rounding": "each"},
    {"layout": "interleaved"},
    {**GLM, "trailing": True, "rounding": "each"},
    {"layout": "interleaved", "out_layout": "half", "inverse": True},
    {"out_layout": "interleaved", "table_layout": "pairs"},
)

SPECS = [
    OpSpec(
        name="rope_layouts",
        op=rope,
        ref=rope_ref,
        inputs=common.queries_and_keys,
        shapes=((3, 1, 2, 24), (0, 2, 3, 8), (1, 1, 1, 24)),
        options=OPTIONS,
        dtypes=(torch.float32, torch.bfloat16),
        mixed=({"q": torch.bfloat16, "k": torch.bfloat16},),
        rows=("q", "k"),
        huge=(3, 32, 90_001, 128),
        errors=(
            (
                common.both(lambda t: t.repeat(1, 1, 3)),
                ValueError,
                "R = 36 must be even and at most D = 24",
            ),
        ),
        bench=tuple(BenchCase((4, 8, 2048, 128), options) for options in OPTIONS),
        **common.SHARED,
        **common.BOTH,
    ),
    OpSpec(
        name="rope_positions",
        op=rope,
        ref=rope_ref,
        inputs=rows_of_a_cache,
        shapes=((3, 1, 2, 24), (0, 2, 3, 8), (1, 1, 1, 24)),
        grad=("q", "k"),
        mixed=({"q": torch.bfloat16, "k": torch.bfloat16},),
        rows=("q", "k", "position_ids"),
        huge=(3, 64, 90_001, 128),
        errors=(
            (common.both(lambda t: t[None]), ValueError, r"\[N, R\] for position_ids"),
            (replace(position_ids=lambda a: a["position_ids"][:2]), ValueError, "T = 2 tokens"),
            (replace(position_ids=lambda a: a["position_ids"][:, 1:]), ValueError, "T = 2 tokens"),
            (replace(position_ids=lambda a: a["position_ids"].float()), TypeError, "int32"),
            (replace(position_ids=lambda a: a["position_ids"].bool()), TypeError, "int32"),
            (replace(position_ids=lambda a: a["position_ids"].to("meta")), ValueError, "is on"),
        ),
        bench=(BenchCase((4, 8, 2048, 128)),),
        traffic=lambda shape, itemsize: 12 * shape[0] * shape[1] * shape[2] * shape[3] * itemsize,
        peak=lambda shape, itemsize, sms: 6 * shape[0] * shape[1] * shape[2] * shape[3] * itemsize,
        **common.SHARED,
    ),
    OpSpec(
        name="rope_unbatched",
        op=partial(rope, unsqueeze_dim=1),
        ref=partial(rope_ref, unsqueeze_dim=1),
        inputs=patches,
        shapes=((3, 2, 12), (0, 2, 8), (1, 2, 12)),
        rows=("q", "k", "cos", "sin"),
        huge=(90_001, 120, 80),
        errors=(
            (replace(unsqueeze_dim=lambda a: 2), ValueError, "unsqueeze_dim"),
            (common.both(lambda t: t[None]), ValueError, r"must be \[T, R\]"),
        ),
        bench=(BenchCase((8192, 16, 80)),),
        **common.SHARED,
        **common.BOTH,
    ),
]
