"""The ops of this package, for tests, compile checks and benchmarks."""

from functools import partial

import torch
from liger_core.testing import BenchCase, OpSpec
from liger_rope.rope import rope, rope_ref


def tables(new, T, R):
    # both halves alike in a model; different here, so that a mixed-up half shows
    return {"cos": new.normal(1, T, R), "sin": new.normal(1, T, R)}


def queries_and_keys(new, shape):
    B, heads, T, D = shape
    # as a projection leaves them: tokens before heads in memory
    q = new.normal(B, T, 3 * heads, D).transpose(1, 2)
    return {
        "q": q,
        "k": new.normal(B, T, heads, D).transpose(1, 2),
        **tables(new, T, D // 4 * 2 or 2),
    }


def one_tensor(new, shape):
    B, heads, T, D = shape
    return {"q": new.normal(B, T, heads, D), **tables(new, T, D)}


def replace(**changes):
    return lambda args: args.update({name: change(args) for name, change in changes.items()})


SHARED = {
    "ref": rope_ref,
    "bound": 1.25,
    "skips": {
        "edge_wide": "a head of 65,536 dimensions does not exist",
        "edge_above_power": "the width of a head is even",
        "edge_below_power": "the width of a head is even",
        "edge_size_one": "the width of a head is even; one token and one head are listed",
    },
    "traffic": lambda shape, itemsize: 4 * 4 * shape[0] * shape[1] * shape[2] * shape[3] * itemsize,
}

SPECS = [
    OpSpec(
        name="rope",
        op=rope,
        inputs=queries_and_keys,
        shapes=((3, 2, 5, 16), (0, 2, 3, 8), (1, 1, 1, 2), (2, 5, 3, 24), (1, 3, 4, 128)),
        grad=("q", "k"),
        mixed=({"q": torch.bfloat16, "k": torch.bfloat16}, {"k": torch.bfloat16}),
        rows=("q", "k"),
        huge=(3, 32, 90_001, 128),
        errors=(
            (replace(q=lambda a: a["q"][0]), ValueError, "four dimensions"),
            (replace(k=lambda a: a["k"][..., :-2]), ValueError, "differ in heads only"),
            (replace(sin=lambda a: a["sin"][:, :-1]), ValueError, "one shape of three"),
            (
                replace(cos=lambda a: a["cos"][:, 1:], sin=lambda a: a["sin"][:, 1:]),
                ValueError,
                "R even",
            ),
            (
                replace(cos=lambda a: a["cos"][..., 1:], sin=lambda a: a["sin"][..., 1:]),
                ValueError,
                "R even",
            ),
            (replace(unsqueeze_dim=lambda a: 3), ValueError, "unsqueeze_dim"),
            (replace(cos=lambda a: a["cos"].requires_grad_()), ValueError, "no gradient"),
            (replace(k=lambda a: a["k"].to("meta")), ValueError, "is on"),
            (replace(q=lambda a: a["q"].long()), TypeError, "floating point"),
        ),
        bench=(BenchCase((4, 8, 2048, 128)),),
        **SHARED,
    ),
    OpSpec(
        name="rope_one_tensor",
        op=partial(rope, k=None, unsqueeze_dim=2),
        inputs=one_tensor,
        shapes=((3, 2, 5, 16), (0, 2, 3, 8), (1, 1, 1, 2), (2, 3, 3, 6)),
        grad=("q",),
        rows=("q",),
        huge=(3, 90_001, 64, 128),
        errors=((replace(q=lambda a: a["q"][:, 1:]), ValueError, "R even"),),
        bench=(BenchCase((4, 32, 2048, 128)),),
        **(SHARED | {"ref": partial(rope_ref, k=None, unsqueeze_dim=2)}),
    ),
]
