"""The ops of this package, for tests, compile checks and benchmarks."""

from functools import partial

import torch
from liger_activations.glu import glu, glu_ref
from liger_core.testing import BenchCase, OpSpec


def separate(new, shape):
    return {"gate": new.normal(*shape, std=2.0), "up": new.normal(*shape)}


def side_by_side(new, shape):
    return {"gate": new.normal(*shape[:-1], 2 * shape[-1])}


def replace(**changes):
    return lambda args: args.update({name: change(args) for name, change in changes.items()})


SHARED = {
    "ref": glu_ref,
    "options": ({}, {"activation": "gelu_tanh"}),
    "bound": 1.25,
    "huge": (150_001, 16_384),
    "traffic": lambda shape, itemsize: 8 * shape[0] * shape[1] * itemsize,
}
UNKNOWN = (replace(activation=lambda a: "swish"), ValueError, "activation must be one of")
LISTED = tuple(BenchCase((8192, 14_336), {"activation": act}) for act in ("silu", "gelu_tanh"))
SHAPES = ((5, 256), (0, 64), (1, 33), (30, 1), (2, 3, 63), (2, 70_001))

SPECS = [
    OpSpec(
        name="glu",
        op=glu,
        inputs=separate,
        shapes=SHAPES,
        grad=("gate", "up"),
        mixed=({"gate": torch.bfloat16},),
        rows=("gate", "up"),
        errors=(
            UNKNOWN,
            (replace(up=lambda a: a["up"][:-1]), ValueError, "one shape"),
            (replace(up=lambda a: a["up"].to("meta")), ValueError, "is on"),
            (
                replace(gate=lambda a: a["gate"].long(), up=lambda a: a["up"].long()),
                TypeError,
                "floating point",
            ),
        ),
        bench=LISTED,
        **SHARED,
    ),
    OpSpec(
        name="glu_side_by_side",
        op=partial(glu, up=None),
        inputs=side_by_side,
        shapes=SHAPES,
        grad=("gate",),
        rows=("gate",),
        errors=(
            UNKNOWN,
            (replace(gate=lambda a: a["gate"][..., 1:]), ValueError, "even last dimension"),
        ),
        bench=LISTED,
        **SHARED,
    ),
]
