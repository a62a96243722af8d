"""The ops of this package, for tests, compile checks and benchmarks."""

import torch
from liger_core.testing import BenchCase, OpSpec
from liger_norms.rms_norm import rms_norm, rms_norm_ref


def inputs(new, shape):
    return {"x": new.normal(*shape), "weight": new.normal(shape[-1])}


def replace(**changes):
    return lambda args: args.update({name: change(args) for name, change in changes.items()})


SPECS = [
    OpSpec(
        name="rms_norm",
        op=rms_norm,
        ref=rms_norm_ref,
        inputs=inputs,
        options=({}, {"offset": 1.0}, {"cast": "before"}),
        shapes=((5, 256), (0, 64), (1, 33), (300, 1), (2, 3, 63), (70, 128), (2, 70_001)),
        grad=("x", "weight"),
        # rows of one column cancel to rounding noise; everywhere else 1.25 holds
        bound=2.0,
        mixed=({"x": torch.bfloat16}, {"weight": torch.bfloat16}),
        rows=("x",),
        huge=(300_001, 8192),
        errors=(
            (replace(weight=lambda a: a["weight"][:-1]), ValueError, r"must be \[..., N\]"),
            (replace(x=lambda a: a["x"][..., :0]), ValueError, "N > 0"),
            (replace(x=lambda a: a["x"].long()), TypeError, "floating point"),
            (replace(cast=lambda a: "never"), ValueError, "cast must be"),
            (replace(eps=lambda a: -1.0), ValueError, "eps"),
            (replace(weight=lambda a: None, offset=lambda a: 1.0), ValueError, "needs a weight"),
            (replace(weight=lambda a: a["weight"].to("meta")), ValueError, "is on"),
        ),
        bench=(
            BenchCase((8192, 2048)),
            BenchCase((8192, 4096)),
            BenchCase((8192, 8192)),
            BenchCase((262144, 128)),
            BenchCase((8192, 4096), {"cast": "before"}),
        ),
        traffic=lambda shape, itemsize: 5 * shape[0] * shape[1] * itemsize,
    ),
]
