"""`poly_norm`, for tests, compile checks and benchmarks."""

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_norms.poly_norm import poly_norm, poly_norm_ref


def inputs(new, shape):
    return {"x": new.normal(*shape), "weight": new.normal(3), "bias": new.normal(1)}


SPECS = [
    OpSpec(
        name="poly_norm",
        op=poly_norm,
        ref=poly_norm_ref,
        inputs=inputs,
        # (20, 2049): several tiles a program
        shapes=(
            (5, 256),
            (0, 64),
            (1, 33),
            (300, 1),
            (2, 3, 63),
            (70, 128),
            (20, 2049),
            (3, 16_384),
            (2, 70_001),
        ),
        grad=("x", "weight", "bias"),
        bound=1.25,
        mixed=({"x": torch.bfloat16}, {"weight": torch.bfloat16}, {"bias": torch.float16}),
        rows=("x",),
        huge=(300_001, 8192),
        errors=(
            (replace(weight=lambda a: a["weight"][:-1]), ValueError, r"weight \(2,\)"),
            (replace(bias=lambda a: a["weight"]), ValueError, r"bias \(3,\)"),
            (replace(x=lambda a: a["x"][..., :0]), ValueError, "N > 0"),
            (replace(x=lambda a: a["bias"][0]), ValueError, "N > 0"),
            (replace(x=lambda a: a["x"].long()), TypeError, "x .* must be floating point"),
            (replace(bias=lambda a: a["bias"].long()), TypeError, "bias .* must be floating point"),
            (replace(weight=lambda a: a["weight"].to("meta")), ValueError, "weight on meta"),
            (replace(eps=lambda a: -1.0), ValueError, "eps"),
        ),
        bench=(BenchCase((8192, 4096)),),
        traffic=lambda shape, itemsize: 5 * shape[0] * shape[1] * itemsize,
        # y and dx, the statistics of a row
        peak=lambda shape, itemsize, sms: shape[0] * (2 * shape[1] * itemsize + 12),
    ),
]
