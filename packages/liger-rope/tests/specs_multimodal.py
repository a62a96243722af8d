"""multimodal_rope, for tests, compile checks and benchmarks."""

from functools import partial
from pathlib import Path

import torch
from liger_core.testing import BenchCase, OpSpec, load_module, replace
from liger_rope.multimodal_rope import multimodal_rope, multimodal_rope_ref

common = load_module(Path(__file__).with_name("specs.py"))


def queries_and_keys(new, shape):
    """Tables for sections of 8 pairs; at the width of Qwen-VL, for its 64."""
    B, heads, T, D = shape
    return {
        "q": new.normal(B, T, 3 * heads, D).transpose(1, 2),
        "k": new.normal(B, T, heads, D).transpose(1, 2),
        **common.tables(new, 3, 1, T, D if D == 128 else 16),
    }


QWEN2, QWEN3 = {"sections": (16, 24, 24)}, {"sections": (24, 20, 20), "interleaved": True}

SPECS = [
    OpSpec(
        name="multimodal_rope",
        op=multimodal_rope,
        ref=multimodal_rope_ref,
        inputs=queries_and_keys,
        shapes=((3, 1, 2, 24), (0, 2, 3, 16), (1, 1, 1, 24)),
        options=(
            {"sections": (2, 3, 3)},
            {"sections": (4, 2, 2), "interleaved": True},
            {"sections": [2, 5, 1], "interleaved": True, "layout": "interleaved"},
        ),
        dtypes=(torch.float32, torch.bfloat16),
        mixed=({"q": torch.bfloat16, "k": torch.bfloat16},),
        rows=("q", "k"),
        huge=(3, 64, 90_001, 64),
        errors=(
            (common.both(lambda t: t[:2]), ValueError, r"one shape, \[3, .., T, R\]"),
            (common.both(lambda t: t[:, 0, 0]), ValueError, r"one shape, \[3, .., T, R\]"),
            (replace(sin=lambda a: a["sin"][..., 2:]), ValueError, "one shape"),
            (common.both(lambda t: t[:, :, 1:]), ValueError, "T = 2 tokens"),
            (replace(sections=lambda a: (2, 3, 4)), ValueError, "together R / 2 = 8"),
            (replace(sections=lambda a: (4, 4)), ValueError, "three sizes"),
            (replace(sections=lambda a: (9, 0, -1)), ValueError, "three sizes"),
            (replace(layout=lambda a: "chunks"), ValueError, "layout must be one of"),
            (replace(sin=lambda a: a["sin"].requires_grad_()), ValueError, "no gradient"),
            (replace(cos=lambda a: a["cos"].to("meta")), ValueError, "is on"),
            (replace(k=lambda a: a["k"].long()), TypeError, "float16"),
        ),
        bench=tuple(BenchCase((4, 8, 2048, 128), options) for options in (QWEN2, QWEN3)),
        **common.SHARED,
        **common.BOTH,
    ),
    OpSpec(
        name="multimodal_rope_pairs",
        op=partial(multimodal_rope, k=None, table_layout="pairs"),
        ref=partial(multimodal_rope_ref, k=None, table_layout="pairs"),
        inputs=lambda new, shape: {
            "q": new.normal(*shape),
            **common.tables(new, 3, shape[0], 8),
        },
        shapes=((5, 2, 16), (0, 2, 16), (1, 1, 16)),
        options=({"sections": (2, 3, 3)}, {"sections": (4, 2, 2), "interleaved": True}),
        dtypes=(torch.float32,),
        huge=(120_001, 300, 64),
        errors=((common.both(lambda t: t[..., 1:]), ValueError, "three sizes"),),
        bench=(BenchCase((8192, 32, 16), {"sections": (2, 3, 3)}),),
        **common.SHARED | {"skips": {**common.SHARED["skips"], "batch_invariance": "no batch"}},
        **common.ONE,
    ),
]
