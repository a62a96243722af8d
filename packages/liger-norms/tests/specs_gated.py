"""gated_rms_norm, for tests, compile checks and benchmarks."""

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_norms.gated_rms_norm import gated_rms_norm, gated_rms_norm_ref
from liger_norms.gated_row_norm import _bwd_config


def inputs(new, shape):
    return {"x": new.normal(*shape), "gate": new.normal(*shape), "weight": new.normal(shape[-1])}


def peak(shape, itemsize, sms, group_size=None, **_):
    M, N = shape
    K = group_size or N
    programs = _bwd_config(K, itemsize)[-1] * sms
    return 3 * M * N * itemsize + 4 * M * N // K + 4 * programs * K


GATE_FIRST = {"norm_before_gate": False}
MAMBA = {"norm_before_gate": False, "cast": "before"}
QWEN = {"cast": "before"}
KIMI = {"activation": "sigmoid"}
MIXED = (
    {"x": torch.bfloat16, "gate": torch.bfloat16},
    {"gate": torch.bfloat16},
    {"weight": torch.bfloat16},
)

SPECS = [
    OpSpec(
        name="gated_rms_norm",
        op=gated_rms_norm,
        ref=gated_rms_norm_ref,
        inputs=inputs,
        options=(QWEN, GATE_FIRST, MAMBA, KIMI),
        shapes=((5, 128), (0, 64), (33, 63), (150, 1), (2, 3, 65), (70, 128), (1, 65_537)),
        grad=("x", "gate", "weight"),
        # rows of one column cancel to rounding noise; everywhere else 1.25 holds
        bound=2.0,
        mixed=MIXED,
        rows=("x", "gate"),
        huge=(300_001, 8192),
        errors=(
            (replace(weight=lambda a: a["weight"][:-1]), ValueError, r"must be \[..., N\]"),
            (replace(gate=lambda a: a["gate"][:-1]), ValueError, "one shape"),
            (replace(x=lambda a: a["x"][..., :0]), ValueError, "N > 0"),
            (replace(x=lambda a: a["x"].long()), TypeError, "floating point"),
            (replace(gate=lambda a: a["gate"].long()), TypeError, "floating point"),
            (replace(gate=lambda a: a["gate"].to("meta")), ValueError, "is on"),
            (replace(cast=lambda a: "never"), ValueError, "cast must be"),
            (replace(cast=lambda a: "rstd", weight=lambda a: None), ValueError, "cast must be"),
            (replace(activation=lambda a: "relu"), ValueError, "activation must be"),
            (replace(group_size=lambda a: 3), ValueError, "must divide"),
            (replace(group_size=lambda a: 0), ValueError, "must divide"),
            (replace(eps=lambda a: -1.0), ValueError, "eps"),
        ),
        bench=(
            BenchCase((262144, 128), QWEN),
            BenchCase((262144, 128), KIMI),
            BenchCase((8192, 4096), MAMBA),
            BenchCase((8192, 8192), MAMBA),
        ),
        traffic=lambda shape, itemsize: 8 * shape[0] * shape[1] * itemsize,
        peak=peak,
    ),
    OpSpec(
        name="gated_rms_norm_grouped",
        op=gated_rms_norm,
        ref=gated_rms_norm_ref,
        inputs=inputs,
        options=({"group_size": 21, **MAMBA}, {"group_size": 21}),
        # 672: the bits of PyTorch's own exp depend on where in a vector of 32 an element lies
        shapes=((5, 63), (0, 42), (1, 21), (33, 42), (2, 1, 84), (40, 672)),
        grad=("x", "gate", "weight"),
        bound=1.25,
        mixed=MIXED,
        rows=("x", "gate"),
        huge=(300_001, 8400),
        skips={"edge_wide": "many groups make a wide row, no wide tile; the other row has those"},
        errors=((replace(group_size=lambda a: 64), ValueError, "must divide"),),
        bench=(
            BenchCase((8192, 4096), {"group_size": 1024, **MAMBA}),
            BenchCase((8192, 4096), {"group_size": 512, **GATE_FIRST}),
        ),
        traffic=lambda shape, itemsize: 8 * shape[0] * shape[1] * itemsize,
        peak=peak,
    ),
]
