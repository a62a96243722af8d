"""`dyt`, for tests, compile checks and benchmarks."""

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_norms.dyt import dyt, dyt_ref


def inputs(new, shape):
    N = shape[-1]
    return {
        "x": new.normal(*shape, std=2.0),
        "alpha": new.uniform(1, low=0.3, high=0.9),
        "weight": new.normal(N),
        "bias": new.normal(N),
    }


def peak(shape, itemsize, sms):
    """y and dx; dw and db; the partial sums of four programs an SM, slabs of 1024 columns."""
    M, N = shape
    slabs = N // 1024
    programs = -(-4 * sms // slabs)
    return (2 * M + 2) * N * itemsize + programs * (2 * N + slabs) * 4


SPECS = [
    OpSpec(
        name="dyt",
        op=dyt,
        ref=dyt_ref,
        inputs=inputs,
        # of the first one, several tiles a program
        shapes=((26, 260), (0, 64), (1, 33), (90, 1), (2, 3, 63), (40, 128), (2, 70_001)),
        grad=("x", "alpha", "weight", "bias"),
        bound=1.25,
        mixed=(
            {"x": torch.bfloat16},
            {"weight": torch.bfloat16},
            {"alpha": torch.bfloat16, "bias": torch.float16},
        ),
        rows=("x",),
        huge=(300_001, 8192),
        errors=(
            (replace(weight=lambda a: a["weight"][:-1]), ValueError, r"weight \(259,\) must be"),
            (replace(bias=lambda a: a["bias"][None]), ValueError, r"bias \(1, 260\) must be"),
            (replace(alpha=lambda a: a["weight"]), ValueError, r"alpha \(260,\) must be"),
            (replace(x=lambda a: a["x"][..., :0]), ValueError, "N > 0"),
            (replace(x=lambda a: a["alpha"][0]), ValueError, "N > 0"),
            (replace(x=lambda a: a["x"].long()), TypeError, "x .* must be floating point"),
            (replace(alpha=lambda a: a["alpha"].long()), TypeError, "alpha .* must be floating"),
            (replace(weight=lambda a: a["weight"].to("meta")), ValueError, "weight on meta"),
        ),
        bench=(BenchCase((8192, 4096)), BenchCase((8192, 8192))),
        traffic=lambda shape, itemsize: 5 * shape[0] * shape[1] * itemsize,
        peak=peak,
    ),
]
