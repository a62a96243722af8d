"""Gated linear units, for tests, compile checks and benchmarks."""

from functools import partial

import torch
from liger_activations.glu import glu, glu_ref
from liger_activations.pointwise import ACTIVATIONS
from liger_core.testing import BenchCase, OpSpec, replace


def separate(new, shape):
    return {"gate": new.normal(*shape, std=2.0), "up": new.normal(*shape)}


def in_one(new, shape):
    return {"gate": new.normal(*shape[:-1], 2 * shape[-1])}


# alpha and limit are fp32 numbers to the kernels; both sides of the limit are common here
CLAMPED = {"alpha": 1.703125, "limit": 1.5, "up_offset": 1.0}
SHARED = {
    "ref": glu_ref,
    "bound": 1.25,
    "huge": (150_001, 16_384),
    "shapes": ((5, 256), (0, 64), (1, 33), (4, 1), (2, 3, 63), (2, 70_001)),
    "traffic": lambda shape, itemsize: 8 * shape[0] * shape[1] * itemsize,
    "peak": lambda shape, itemsize, sms, **_: 3 * shape[0] * shape[1] * itemsize,
}
BAD_OPTIONS = (
    (replace(activation=lambda a: "swish"), ValueError, "activation must be one of"),
    (replace(layout=lambda a: "side by side"), ValueError, "layout must be one of"),
    (replace(clamp=lambda a: "both"), ValueError, "clamp must be one of"),
    (replace(alpha=lambda a: 2.0, activation=lambda a: "gelu"), ValueError, "is for the silu"),
    (replace(limit=lambda a: 0.0), ValueError, "limit must be positive"),
    (replace(limit=lambda a: float("nan")), ValueError, "limit must be positive"),
)

SPECS = [
    OpSpec(
        name="glu",
        op=glu,
        inputs=separate,
        options=(
            *({"activation": activation} for activation in ACTIVATIONS),
            CLAMPED,
            {"activation": "relu_squared", "limit": 1.5, "clamp": "after"},
        ),
        grad=("gate", "up"),
        mixed=({"gate": torch.bfloat16},),
        rows=("gate", "up"),
        errors=(
            *BAD_OPTIONS,
            (replace(layout=lambda a: "interleaved"), ValueError, "is for gate and up in one"),
            (replace(up=lambda a: a["up"][:-1]), ValueError, "one shape"),
            (replace(up=lambda a: a["up"].to("meta")), ValueError, "is on"),
            (replace(up=lambda a: a["up"].long()), TypeError, "floating point"),
            (
                replace(gate=lambda a: a["gate"].long(), up=lambda a: a["up"].long()),
                TypeError,
                "floating point",
            ),
        ),
        bench=tuple(
            BenchCase((8192, 14_336), {"activation": name})
            for name in ("silu", "gelu", "gelu_tanh")
        ),
        **SHARED,
    ),
    OpSpec(
        name="glu_in_one",
        op=partial(glu, up=None),
        inputs=in_one,
        options=(
            {},
            {"layout": "up_first", "activation": "sigmoid"},
            {"layout": "interleaved", "activation": "gelu"},
            {"layout": "interleaved", **CLAMPED},
        ),
        grad=("gate",),
        rows=("gate",),
        errors=(
            *BAD_OPTIONS,
            (replace(gate=lambda a: a["gate"][..., 1:]), ValueError, "even last dimension"),
            (replace(gate=lambda a: a["gate"].long()), TypeError, "floating point"),
        ),
        bench=(
            BenchCase((8192, 14_336)),
            BenchCase(
                (8192, 2880),
                {"layout": "interleaved", "alpha": 1.702, "limit": 7.0, "up_offset": 1.0},
            ),
        ),
        **SHARED,
    ),
]
