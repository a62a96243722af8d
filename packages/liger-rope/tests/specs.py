"""rope as it is called most, for tests, compile checks and benchmarks."""

from functools import partial
from math import prod

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_rope.rope import rope, rope_ref


def tables(new, *shape):
    # both columns of a pair alike in a model; different here, so that mixed-up ones show
    return {"cos": new.normal(*shape), "sin": new.normal(*shape)}


def queries_and_keys(new, shape):
    B, heads, T, D = shape
    # as a projection leaves them: tokens before heads in memory
    return {
        "q": new.normal(B, T, 3 * heads, D).transpose(1, 2),
        "k": new.normal(B, T, heads, D).transpose(1, 2),
        **tables(new, 1, T, D // 4 * 2 or 2),
    }


def one_tensor(new, shape):
    B, T, heads, D = shape
    return {"q": new.normal(B, T, heads, D), **tables(new, 1, T, D)}


SHARED = {
    "bound": 1.25,
    "skips": {
        "edge_wide": "a head of 65,536 dimensions does not exist",
        "edge_above_power": "the width of a head is even",
        "edge_below_power": "the width of a head is even",
        "edge_size_one": "the width of a head is even; one token and one head are listed",
    },
}
# q has three times the heads of k
BOTH = {
    "grad": ("q", "k"),
    "traffic": lambda shape, itemsize: 16 * prod(shape) * itemsize,
    "peak": lambda shape, itemsize, sms, **options: 8 * prod(shape) * itemsize,
}
ONE = {
    "grad": ("q",),
    "traffic": lambda shape, itemsize: 4 * prod(shape) * itemsize,
    "peak": lambda shape, itemsize, sms, **options: 2 * prod(shape) * itemsize,
}


def both(change):
    """Bad tables of one kind."""
    return replace(cos=lambda a: change(a["cos"]), sin=lambda a: change(a["sin"]))


SPECS = [
    OpSpec(
        name="rope",
        op=rope,
        ref=rope_ref,
        inputs=queries_and_keys,
        shapes=((3, 1, 5, 24), (0, 2, 3, 8), (1, 1, 1, 24), (1, 3, 4, 128)),
        mixed=({"q": torch.bfloat16, "k": torch.bfloat16}, {"k": torch.bfloat16}),
        rows=("q", "k"),
        huge=(3, 32, 90_001, 128),
        errors=(
            (replace(q=lambda a: a["q"][0, 0]), ValueError, "four dimensions"),
            (replace(q=lambda a: a["q"][0]), ValueError, "four dimensions"),
            (replace(k=lambda a: a["k"][0]), ValueError, "four dimensions"),
            (replace(k=lambda a: a["k"][..., :-2]), ValueError, "differ in heads only"),
            (replace(k=lambda a: a["k"][:1]), ValueError, "differ in heads only"),
            (replace(sin=lambda a: a["sin"][:, :-1]), ValueError, "one shape"),
            (both(lambda t: t[0, 0, 0]), ValueError, "one shape"),
            (both(lambda t: t[:, 1:]), ValueError, "angles for T = 5 tokens"),
            (both(lambda t: t.expand(2, -1, -1)), ValueError, "angles for T = 5 tokens"),
            (both(lambda t: t[None]), ValueError, r"must be \[T, R\]"),
            (both(lambda t: t[..., 1:]), ValueError, "R = 11 must be even and at most D = 24"),
            (both(lambda t: t[..., :0]), ValueError, "R = 0 must be even"),
            (both(lambda t: t.repeat(1, 1, 3)), ValueError, "R = 36 must be even and at most"),
            (replace(unsqueeze_dim=lambda a: 3), ValueError, "unsqueeze_dim"),
            (replace(unsqueeze_dim=lambda a: 2), ValueError, "differ in heads only"),
            (replace(layout=lambda a: "pairs"), ValueError, "layout must be one of half, inter"),
            (replace(out_layout=lambda a: "split"), ValueError, "out_layout must be"),
            (replace(table_layout=lambda a: "full"), ValueError, "table_layout must be"),
            (replace(rounding=lambda a: "twice"), ValueError, "rounding must be one of once, each"),
            (replace(cos=lambda a: a["cos"].requires_grad_()), ValueError, "no gradient"),
            (replace(k=lambda a: a["k"].to("meta")), ValueError, "is on"),
            (replace(sin=lambda a: a["sin"].to("meta")), ValueError, "is on"),
            (replace(q=lambda a: a["q"].long()), TypeError, "float16"),
            (replace(k=lambda a: a["k"].to(torch.float8_e4m3fn)), TypeError, "float16"),
            (replace(sin=lambda a: a["sin"].to(torch.complex64)), TypeError, "float16"),
        ),
        bench=(BenchCase((4, 8, 2048, 128)),),
        **SHARED,
        **BOTH,
    ),
    OpSpec(
        name="rope_one_tensor",
        op=partial(rope, k=None, unsqueeze_dim=2),
        ref=partial(rope_ref, k=None, unsqueeze_dim=2),
        inputs=one_tensor,
        shapes=((3, 2, 5, 6), (0, 2, 3, 8), (1, 1, 1, 6)),
        rows=("q",),
        huge=(3, 90_001, 64, 128),
        errors=((replace(q=lambda a: a["q"][:, 1:]), ValueError, "angles for T = 1 tokens"),),
        bench=(BenchCase((4, 2048, 32, 128)),),
        **SHARED,
        **ONE,
    ),
]
