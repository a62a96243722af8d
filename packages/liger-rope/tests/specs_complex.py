"""complex_rope, for tests, compile checks and benchmarks."""

from functools import partial
from pathlib import Path

import torch
from liger_core.testing import BenchCase, OpSpec, load_module, replace
from liger_rope.complex_rope import complex_rope, complex_rope_ref

common = load_module(Path(__file__).with_name("specs.py"))


def complex_numbers(new, *shape):
    parts = new.normal(*shape, 2)
    return torch.view_as_complex(parts.to(torch.promote_types(parts.dtype, torch.float32)))


def queries_and_keys(new, shape):
    B, T, heads, D = shape
    return {
        "q": new.normal(B, T, 3 * heads, D),
        "k": new.normal(B, T, heads, D),
        "freqs": complex_numbers(new, B, T, D // 4 or 1),
    }


SPECS = [
    OpSpec(
        name="complex_rope",
        op=partial(complex_rope, unsqueeze_dim=2),
        ref=partial(complex_rope_ref, unsqueeze_dim=2),
        inputs=queries_and_keys,
        shapes=((3, 2, 1, 24), (0, 3, 2, 8), (1, 1, 1, 24)),
        mixed=(
            {"q": torch.bfloat16, "k": torch.bfloat16},
            {"k": torch.bfloat16, "freqs": torch.complex128},
        ),
        rows=("q", "k", "freqs"),
        huge=(3, 90_001, 32, 128),
        errors=(
            (replace(freqs=lambda a: a["freqs"][0, 0]), ValueError, r"\[.., T, R / 2\]"),
            (replace(freqs=lambda a: a["freqs"][:, 1:]), ValueError, "T = 2 tokens"),
            (replace(freqs=lambda a: a["freqs"].repeat(1, 1, 5)), ValueError, "R = 60 must be"),
            (replace(freqs=lambda a: a["freqs"].requires_grad_()), ValueError, "no gradient"),
            (replace(freqs=lambda a: a["freqs"].real), TypeError, "complex64"),
            (replace(freqs=lambda a: a["freqs"].to("meta")), ValueError, "is on"),
            (replace(k=lambda a: a["k"][..., :-2]), ValueError, "differ in heads only"),
            (replace(q=lambda a: a["q"].long()), TypeError, "float16"),
        ),
        bench=(BenchCase((4, 2048, 8, 128)),),
        **common.SHARED,
        **common.BOTH,
    ),
]
