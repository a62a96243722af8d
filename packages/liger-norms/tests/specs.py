"""The norms on the kernels of `row_norm`, for tests, compile checks and benchmarks."""

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_norms.fused_add_norm import (
    fused_add_layer_norm,
    fused_add_layer_norm_ref,
    fused_add_rms_norm,
    fused_add_rms_norm_ref,
)
from liger_norms.layer_norm import layer_norm, layer_norm_ref
from liger_norms.rms_norm import rms_norm, rms_norm_ref
from liger_norms.row_norm import _bwd_config, _wide_bwd_config


def weighted(new, shape):
    return {"x": new.normal(*shape), "weight": new.normal(shape[-1])}


def with_bias(new, shape):
    return weighted(new, shape) | {"bias": new.normal(shape[-1])}


def with_residual(inputs):
    return lambda new, shape: inputs(new, shape) | {"residual": new.normal(*shape)}


def peak(tensors, stats, weights):
    """`tensors` of the shape of x, `stats` numbers a row, a partial sum for each weight."""

    def formula(shape, itemsize, sms, **options):
        M, N = shape
        if N * itemsize > 32768:
            per_sm, _, config = _wide_bwd_config(itemsize, weights)
            programs, stats_ = max(1, per_sm * sms // -(-N // config["BLOCK_N"])), stats + 2
        else:
            programs, stats_ = sms * _bwd_config(N, itemsize, tensors, weights)[0], stats
        sums = weights * (4 * min(programs, M) + itemsize) * N
        return tensors * M * N * itemsize + 4 * stats_ * M + sums

    return formula


SHAPES = ((5, 256), (0, 64), (1, 33), (300, 1), (2, 3, 63), (300, 256), (3, 1500), (2, 70_001))
FEW = ((5, 64), (0, 64), (1, 33), (2, 3, 63), (300, 64), (3, 1), (3, 1500), (2, 70_001))
ERRORS = (
    (replace(weight=lambda a: a["weight"][:-1]), ValueError, r"must be \[..., N\]"),
    (replace(x=lambda a: a["x"][..., :0]), ValueError, "N > 0"),
    (replace(x=lambda a: a["x"].long()), TypeError, "floating point"),
    (replace(eps=lambda a: -1.0), ValueError, "eps"),
    (replace(weight=lambda a: None, offset=lambda a: 1.0), ValueError, "needs a weight"),
    (replace(weight=lambda a: a["weight"].to("meta")), ValueError, "is on"),
)
RESIDUAL_ERRORS = (
    (replace(residual=lambda a: a["residual"][:-1]), ValueError, "one shape"),
    (replace(residual=lambda a: a["residual"].long()), TypeError, "floating point"),
    (replace(residual=lambda a: a["residual"].to("meta")), ValueError, "is on"),
)
NO_COLUMN = {"edge_size_one": "one column has variance 0, and a gradient that is rounding noise"}
SHARED = {
    # rows of one column cancel to rounding noise; everywhere else 1.25 holds
    "bound": 2.0,
    "huge": (300_001, 8192),
}
WIDTHS = ((8192, 4096), (8192, 5120), (512, 131_072))


def moved(units):
    return lambda shape, itemsize: units * shape[0] * shape[1] * itemsize


SPECS = [
    OpSpec(
        name="rms_norm",
        op=rms_norm,
        ref=rms_norm_ref,
        inputs=weighted,
        options=({}, {"offset": 1.0}, {"cast": "before"}),
        shapes=SHAPES,
        grad=("x", "weight"),
        mixed=({"x": torch.bfloat16}, {"weight": torch.bfloat16}),
        rows=("x",),
        errors=(
            *ERRORS,
            (replace(cast=lambda a: "never"), ValueError, "cast must be"),
            (replace(cast=lambda a: "rstd"), ValueError, "takes no weight"),
        ),
        bench=(
            BenchCase((8192, 2048)),
            BenchCase((8192, 8192)),
            BenchCase((262144, 128)),
            BenchCase((8192, 4096), {"cast": "before"}),
            *map(BenchCase, WIDTHS),
            BenchCase((4096, 16384), dtype=torch.float32),
        ),
        traffic=moved(5),
        peak=peak(tensors=2, stats=1, weights=1),
        **SHARED,
    ),
    OpSpec(
        name="rms_norm_without_weight",
        op=rms_norm,
        ref=rms_norm_ref,
        inputs=lambda new, shape: {"x": new.normal(*shape)},
        options=({}, {"cast": "rstd"}),
        shapes=FEW,
        grad=("x",),
        rows=("x",),
        errors=((replace(offset=lambda a: 1.0), ValueError, "needs a weight"),),
        bench=(BenchCase((8192, 4096)),),
        traffic=moved(5),
        peak=peak(tensors=2, stats=1, weights=0),
        **SHARED,
    ),
    OpSpec(
        name="layer_norm",
        op=layer_norm,
        ref=layer_norm_ref,
        inputs=with_bias,
        options=({}, {"offset": 1.0}),
        shapes=tuple(shape for shape in SHAPES if shape[-1] > 1),
        skips=NO_COLUMN,
        grad=("x", "weight", "bias"),
        mixed=({"x": torch.bfloat16}, {"weight": torch.bfloat16}, {"bias": torch.bfloat16}),
        rows=("x",),
        errors=ERRORS,
        bench=(BenchCase((8192, 1024)), *map(BenchCase, WIDTHS)),
        traffic=moved(5),
        peak=peak(tensors=2, stats=2, weights=2),
        **SHARED,
    ),
    OpSpec(
        name="fused_add_rms_norm",
        op=fused_add_rms_norm,
        ref=fused_add_rms_norm_ref,
        inputs=with_residual(weighted),
        options=({}, {"cast": "before"}),
        shapes=FEW,
        grad=("x", "residual", "weight"),
        mixed=({"x": torch.bfloat16}, {"residual": torch.bfloat16}),
        rows=("x", "residual"),
        errors=ERRORS + RESIDUAL_ERRORS,
        bench=(BenchCase((8192, 8192)), *map(BenchCase, WIDTHS)),
        traffic=moved(8),
        peak=peak(tensors=3, stats=1, weights=1),
        **SHARED,
    ),
    OpSpec(
        name="fused_add_layer_norm",
        op=fused_add_layer_norm,
        ref=fused_add_layer_norm_ref,
        inputs=with_residual(with_bias),
        shapes=tuple(shape for shape in FEW if shape[-1] > 1),
        skips=NO_COLUMN,
        grad=("x", "residual", "weight", "bias"),
        mixed=({"x": torch.bfloat16},),
        rows=("x", "residual"),
        errors=ERRORS + RESIDUAL_ERRORS,
        bench=(BenchCase((8192, 4096)),),
        traffic=moved(8),
        peak=peak(tensors=3, stats=2, weights=2),
        **SHARED,
    ),
]
