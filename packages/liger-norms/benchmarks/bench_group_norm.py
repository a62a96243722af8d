"""GroupNorm: rows and peers of `python -m liger_core.bench run norms`."""

import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row

GROUPS = 32
SHAPES = ((8, 320, 64, 64), True), ((2, 512, 128, 128), False), ((1, 128, 512, 512), False)


def eager():
    return lambda x, weight, bias: F.group_norm(x, GROUPS, weight, bias, 1e-5)


def liger_kernel():
    from liger_kernel.transformers.functional import liger_group_norm

    return lambda x, weight, bias: liger_group_norm(x, weight, bias, x.shape[1], GROUPS, 1e-5)


FAMILY = Family(
    rows=tuple(
        Row("group_norm", shape, small=(2, 64, 8, 8), options={"num_groups": GROUPS}, readme=readme)
        for shape, readme in SHAPES
    ),
    peers={
        "group_norm": (
            Peer("eager", eager),
            Peer("liger-kernel", liger_kernel, "liger-kernel"),
        )
    },
)
