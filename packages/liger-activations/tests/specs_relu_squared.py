"""relu_squared, for tests, compile checks and benchmarks."""

from liger_activations.relu_squared import relu_squared, relu_squared_ref
from liger_core.testing import BenchCase, OpSpec, replace

SPECS = [
    OpSpec(
        name="relu_squared",
        op=relu_squared,
        ref=relu_squared_ref,
        inputs=lambda new, shape: {"x": new.normal(*shape)},
        shapes=((5, 256), (0, 64), (1, 33), (4, 1), (2, 3, 63), (2, 70_001)),
        grad=("x",),
        bound=1.25,
        rows=("x",),
        huge=(150_001, 16_384),
        errors=((replace(x=lambda a: a["x"].long()), TypeError, "floating point"),),
        bench=(BenchCase((8192, 14_336)),),
        traffic=lambda shape, itemsize: 5 * shape[0] * shape[1] * itemsize,
        peak=lambda shape, itemsize, sms: 2 * shape[0] * shape[1] * itemsize,
    ),
]
