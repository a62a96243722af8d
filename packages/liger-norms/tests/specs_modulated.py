"""Modulated norms, for tests, compile checks and benchmarks."""

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_norms.modulated_norm import (
    modulated_layer_norm,
    modulated_layer_norm_ref,
    modulated_rms_norm,
    modulated_rms_norm_ref,
)
from liger_norms.row_norm import _bwd_config


def modulated(new, shape):
    """One scale and shift a sample."""
    return {
        "x": new.normal(*shape),
        "scale": new.normal(shape[0], shape[-1]),
        "shift": new.normal(shape[0], shape[-1]),
    }


def with_weight(new, shape):
    return modulated(new, shape) | {"weight": new.normal(shape[-1])}


def with_bias(new, shape):
    return with_weight(new, shape) | {"bias": new.normal(shape[-1])}


def peak(stats, weights):
    """y and dx, statistics, partial sums of scale and shift for each sample."""

    def formula(shape, itemsize, sms):
        B, T, N = shape
        per_sm, config = _bwd_config(N, itemsize, 2, 2)
        programs = min(per_sm * sms, -(-T // (64 * config["BLOCK_M"])))
        small = 2 * 4 * N * B * (programs + 1) + (1 + weights) * 4 * N * B
        return 2 * B * T * N * itemsize + 4 * stats * B * T + small

    return formula


ERRORS = (
    (replace(scale=lambda a: a["scale"][:-1]), ValueError, "broadcast to x"),
    (replace(shift=lambda a: a["shift"][:, :-1]), ValueError, "broadcast to x"),
    (replace(scale=lambda a: a["scale"].long()), TypeError, "floating point"),
    (replace(shift=lambda a: a["shift"].to("meta")), ValueError, "is on"),
    (replace(eps=lambda a: -1.0), ValueError, "eps"),
)
SHARED = {
    "shapes": ((3, 4, 64), (0, 2, 64), (1, 300, 63), (2, 1, 40), (2, 140, 33), (1, 2, 70_001)),
    "mixed": ({"x": torch.bfloat16}, {"scale": torch.bfloat16}),
    "rows": ("x", "scale", "shift"),
    "huge": (3, 100_001, 8192),
    # rows of one column cancel to rounding noise
    "bound": 2.0,
    "bench": (BenchCase((4, 4096, 3072)),),
    "traffic": lambda shape, itemsize: 5 * shape[0] * shape[1] * shape[2] * itemsize,
    "errors": ERRORS,
}

SPECS = [
    OpSpec(
        name="modulated_rms_norm",
        op=modulated_rms_norm,
        ref=modulated_rms_norm_ref,
        inputs=modulated,
        grad=("x", "scale", "shift"),
        peak=peak(stats=1, weights=0),
        **SHARED,
    ),
    OpSpec(
        name="modulated_rms_norm_weight",
        op=modulated_rms_norm,
        ref=modulated_rms_norm_ref,
        inputs=with_weight,
        grad=("x", "scale", "shift", "weight"),
        peak=peak(stats=1, weights=1),
        **SHARED,
    ),
    OpSpec(
        name="modulated_layer_norm",
        op=modulated_layer_norm,
        ref=modulated_layer_norm_ref,
        inputs=with_bias,
        grad=("x", "scale", "shift", "weight", "bias"),
        peak=peak(stats=2, weights=2),
        **SHARED,
    ),
]
