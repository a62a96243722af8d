"""sparsemax, for tests, compile checks and benchmarks."""

from functools import partial

from liger_activations.sparsemax import sparsemax, sparsemax_ref
from liger_core.testing import BenchCase, OpSpec, replace


def inputs(new, shape):
    return {"x": new.normal(*shape, std=0.5)}


ERRORS = (
    (replace(x=lambda a: a["x"].long()), TypeError, "floating point"),
    (replace(x=lambda a: a["x"].sum()), ValueError, "has no dimension"),
)

SPECS = [
    OpSpec(
        name="sparsemax",
        op=sparsemax,
        ref=sparsemax_ref,
        inputs=inputs,
        shapes=((5, 256), (0, 64), (1, 33), (300, 1), (7, 63), (40, 129), (2, 16_385), (2, 70_001)),
        grad=("x",),
        bound=1.25,
        rows=("x",),
        fuzz=(range(6), range(1, 300)),
        huge=(150_001, 16_384),
        errors=(
            *ERRORS,
            (replace(x=lambda a: a["x"][:, :0]), ValueError, "size 0"),
            (replace(dim=lambda a: -3), ValueError, "has no dimension -3"),
            (replace(dim=lambda a: None), TypeError, "dim must be an integer"),
        ),
        bench=tuple(BenchCase(s) for s in ((8192, 4096), (4096, 32_768), (1_048_576, 128))),
        traffic=lambda shape, itemsize: 5 * shape[0] * shape[1] * itemsize,
        peak=lambda shape, itemsize, sms: 2 * shape[0] * shape[1] * itemsize,
    ),
    OpSpec(
        name="sparsemax_inner",
        op=partial(sparsemax, dim=1),
        ref=partial(sparsemax_ref, dim=1),
        inputs=inputs,
        shapes=((5, 63, 2), (0, 17, 3), (1, 1, 4), (1, 65_537, 2)),
        grad=("x",),
        bound=1.25,
        rows=("x",),
        errors=ERRORS,
        bench=(BenchCase((64, 1000, 4096)),),
        # the copy of x is gone when dx comes, and dy has the layout of y
        peak=lambda shape, itemsize, sms: 2 * shape[0] * shape[1] * shape[2] * itemsize,
        skips={"large_offsets": "the kernels of sparsemax", "huge": "the kernels of sparsemax"},
    ),
]
