"""Softmax: rows and peers of `python -m liger_core.bench run activations`."""

import torch
from liger_core.bench import Family, Peer, Row


def eager():
    return lambda x: torch.softmax(x, dim=-1)


def liger_kernel():
    from liger_kernel.transformers.functional import liger_softmax

    return lambda x: liger_softmax(x)


def quack():
    from quack import softmax

    return lambda x: softmax(x)


SHAPES = ((8192, 4096), (8192, 32_768), (4096, 131_072))

FAMILY = Family(
    rows=tuple(
        Row("softmax", shape, small=(16, shape[1] // 4), readme=shape == (8192, 4096))
        for shape in SHAPES
    ),
    peers={
        "softmax": (
            Peer("eager", eager),
            Peer("liger-kernel", liger_kernel, "liger-kernel"),
            Peer("quack", quack, "quack-kernels"),
        )
    },
)
