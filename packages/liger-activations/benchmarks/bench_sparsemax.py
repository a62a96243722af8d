"""Sparsemax: rows and peers of `python -m liger_core.bench run activations`."""

from liger_activations.sparsemax import sparsemax_ref
from liger_core.bench import Family, Peer, Row


def eager():
    return sparsemax_ref


def liger_kernel():
    from liger_kernel.transformers.functional import liger_sparsemax

    return lambda x: liger_sparsemax(x)


SHAPES = ((8192, 4096), (4096, 32_768))

FAMILY = Family(
    rows=tuple(
        Row("sparsemax", shape, small=(16, shape[1] // 4), readme=shape == (8192, 4096))
        for shape in SHAPES
    ),
    peers={
        "sparsemax": (
            Peer("eager", eager),
            Peer("liger-kernel", liger_kernel, "liger-kernel"),
        )
    },
)
