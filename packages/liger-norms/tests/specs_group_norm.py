"""group_norm, for tests, compile checks and benchmarks."""

import math

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_norms.group_norm import group_norm, group_norm_ref


def inputs(new, shape):
    # a mean of several standard deviations: centred squares are not squares
    return {
        "x": new.normal(*shape, mean=3.0),
        "weight": new.normal(shape[1]),
        "bias": new.normal(shape[1]),
    }


def peak(shape, itemsize, sms, num_groups):
    B, C, *sizes = shape
    tiles = -(-math.prod(sizes) // 4096)
    return 2 * math.prod(shape) * itemsize + 8 * B * num_groups + 8 * B * C * tiles


SPECS = [
    OpSpec(
        name="group_norm",
        op=group_norm,
        ref=group_norm_ref,
        inputs=inputs,
        options=({"num_groups": 3}, {"num_groups": 1, "eps": 2.0**-10}),
        shapes=(
            (5, 6, 7),
            (0, 3, 8),
            (1, 9, 33),
            (40, 63),
            (3, 6, 4, 128),
            (2, 3, 70_001),
        ),
        grad=("x", "weight", "bias"),
        bound=1.5,
        skips={"edge_size_one": "a group of one element has variance 0, a gradient that is noise"},
        mixed=({"x": torch.bfloat16}, {"weight": torch.bfloat16}),
        rows=("x",),
        huge=(70_001, 6, 8192),
        errors=(
            (replace(x=lambda a: a["x"][:, 0, 0]), ValueError, r"must be \[B, C, ...\]"),
            (replace(num_groups=lambda a: 4), ValueError, "must divide C"),
            (replace(num_groups=lambda a: 0), ValueError, "must divide C"),
            (replace(x=lambda a: a["x"][:, :0]), ValueError, "C > 0"),
            (
                replace(weight=lambda a: a["weight"][:-1]),
                ValueError,
                r"weight \(5,\) must be",
            ),
            (replace(bias=lambda a: a["bias"][:-1]), ValueError, r"bias \(5,\) must be"),
            (replace(x=lambda a: a["x"].long()), TypeError, "x torch.int64 must be floating"),
            (replace(bias=lambda a: a["bias"].long()), TypeError, "bias torch.int64 must be"),
            (replace(weight=lambda a: a["weight"].to("meta")), ValueError, "is on"),
            (replace(eps=lambda a: -1.0), ValueError, "eps"),
        ),
        bench=(
            BenchCase((8, 320, 64, 64), {"num_groups": 32}),
            BenchCase((2, 512, 128, 128), {"num_groups": 32}),
            BenchCase((8, 1280, 16, 16), {"num_groups": 32}),
        ),
        traffic=lambda shape, itemsize: 5 * math.prod(shape) * itemsize,
        peak=peak,
    ),
]
