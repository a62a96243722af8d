"""The gated linear unit with its projection, for tests, compile checks and benchmarks."""

from functools import partial

import torch
from liger_activations.glu_linear import glu_linear, glu_linear_ref
from liger_core.testing import BenchCase, OpSpec, replace

# numbers that fp32, in which kernels take them, holds exactly
CLAMPED = {"alpha": 1.703125, "limit": 1.5, "up_offset": 1.0}


def projection(new, shape):
    *_, N, H = shape
    return {"weight": new.normal(H, N, std=N**-0.5), "bias": new.normal(H)}


def separate(new, shape):
    wide = shape[:-1]
    return {"gate": new.normal(*wide, std=2.0), "up": new.normal(*wide), **projection(new, shape)}


def in_one(new, shape):
    *M, N, _ = shape
    return {"gate": new.normal(*M, 2 * N), **projection(new, shape)}


def peak(shape, itemsize, sms, **options):
    M, N, H = shape
    return (3 * M * N + M * H + H * N) * itemsize


SHARED = {
    "bound": 1.25,
    "huge": (150_001, 16_384, 2),
    # columns enough that eager's rounding is a fair measure
    "shapes": (
        (40, 256, 32),
        (0, 64, 8),
        (1, 33, 70),
        (600, 1, 33),
        (2, 9, 63, 16),
        (3, 70_001, 8),
    ),
    "peak": peak,
    "skips": {
        "batch_invariance": "matrix products of another batch size round differently",
        "huge": "its kernels are those of glu, which runs at its own huge shape",
    },
}
ERRORS = (
    (replace(activation=lambda a: "swish"), ValueError, "glu_linear: activation must be one of"),
    (replace(weight=lambda a: a["weight"][:, 1:]), ValueError, r"weight .* must be \[H, N\]"),
    (replace(weight=lambda a: a["weight"][0]), ValueError, r"weight .* must be \[H, N\]"),
    (replace(weight=lambda a: a["weight"].double()), TypeError, "weight is torch.float64"),
    (replace(weight=lambda a: a["weight"].to("meta")), ValueError, "weight on meta"),
    (replace(bias=lambda a: a["bias"][1:]), ValueError, r"bias .* must be \[H\]"),
    (replace(bias=lambda a: a["bias"].half()), TypeError, "bias is torch.float16"),
)

SPECS = [
    OpSpec(
        name="glu_linear",
        op=glu_linear,
        ref=glu_linear_ref,
        inputs=separate,
        options=({}, {"activation": "gelu"}, CLAMPED),
        grad=("gate", "up", "weight", "bias"),
        mixed=({"gate": torch.bfloat16},),
        errors=(
            *ERRORS,
            (replace(up=lambda a: a["up"][:-1]), ValueError, "glu_linear: .* one shape"),
        ),
        bench=(
            BenchCase((8192, 14_336, 4096)),
            BenchCase((8192, 14_336, 4096), {"activation": "gelu_tanh"}),
        ),
        **SHARED,
    ),
    OpSpec(
        name="glu_linear_in_one",
        op=partial(glu_linear, up=None),
        ref=partial(glu_linear_ref, up=None),
        inputs=in_one,
        options=({}, {"layout": "interleaved", **CLAMPED}),
        grad=("gate", "weight", "bias"),
        errors=ERRORS,
        bench=(
            BenchCase((8192, 14_336, 4096)),
            BenchCase((8192, 2880, 2880), {"layout": "interleaved", **CLAMPED}),
        ),
        **SHARED,
    ),
]
