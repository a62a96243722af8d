"""RMSNorm: rows and peers of `python -m liger_core.bench run norms`."""

import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row


def eager():
    return lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6)


def liger_kernel():
    from liger_kernel.transformers.functional import liger_rms_norm

    return lambda x, weight: liger_rms_norm(x, weight, 1e-6)


def quack():
    from quack import rmsnorm

    return lambda x, weight: rmsnorm(x, weight, eps=1e-6)


def fla():
    from fla.modules.norm.layernorm import rms_norm

    return lambda x, weight: rms_norm(x, weight, None, eps=1e-6)


SHAPES = ((8192, 2048), (8192, 4096), (8192, 8192), (32768, 4096), (262144, 128))

FAMILY = Family(
    rows=tuple(
        Row("rms_norm", shape, small=(64, shape[1] // 32), readme=shape == (8192, 4096))
        for shape in SHAPES
    ),
    peers={
        "rms_norm": (
            Peer("eager", eager),
            # writes the gradient of x over the incoming one
            Peer("liger-kernel", liger_kernel, "liger-kernel", inplace=True),
            Peer("quack", quack, "quack-kernels"),
            Peer("fla", fla, "fla-core"),
        )
    },
)
