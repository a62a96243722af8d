"""DyT: rows and peers of `python -m liger_core.bench run norms`."""

import torch
from liger_core.bench import Family, Peer, Row


def eager():
    return lambda x, alpha, weight, bias: torch.tanh(alpha * x) * weight + bias


def liger_kernel():
    from liger_kernel.transformers.functional import liger_dyt

    return lambda x, alpha, weight, bias: liger_dyt(x, alpha, weight, bias)


FAMILY = Family(
    rows=(
        Row("dyt", (8192, 4096), small=(64, 128), readme=True),
        Row("dyt", (8192, 8192), small=(64, 256)),
    ),
    peers={
        "dyt": (
            Peer("eager", eager),
            Peer("liger-kernel", liger_kernel, "liger-kernel"),
        )
    },
)
