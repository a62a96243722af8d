"""RMSNorm, LayerNorm and their fused forms: rows and peers of `bench run norms`."""

import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row


def eager_rms_norm():
    return lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6)


def eager_layer_norm():
    return lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, 1e-5)


def eager_add():
    def add(x, residual, weight):
        s = x + residual
        return F.rms_norm(s, weight.shape, weight, 1e-6), s

    return add


def liger_kernel_rms_norm():
    from liger_kernel.transformers.functional import liger_rms_norm

    return lambda x, weight: liger_rms_norm(x, weight, 1e-6)


def liger_kernel_layer_norm():
    from liger_kernel.transformers.functional import liger_layer_norm

    return lambda x, weight, bias: liger_layer_norm(x, weight, bias, 1e-5)


def liger_kernel_add():
    from liger_kernel.transformers.functional import liger_fused_add_rms_norm

    return lambda x, residual, weight: liger_fused_add_rms_norm(x, residual, weight, 1e-6)


def quack_rms_norm():
    from quack import rmsnorm

    return lambda x, weight: rmsnorm(x, weight, eps=1e-6)


def quack_add():
    from quack import rmsnorm

    return lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=1e-6, prenorm=True)


def fla_rms_norm():
    from fla.modules.norm.layernorm import rms_norm

    return lambda x, weight: rms_norm(x, weight, None, eps=1e-6)


def fla_layer_norm():
    from fla.modules.norm.layernorm import layer_norm

    return lambda x, weight, bias: layer_norm(x, weight, bias, eps=1e-5)


def rows(op, shapes, **options):
    return tuple(
        Row(op, shape, small=(64, max(shape[1] // 32, 8)), readme=shape == (8192, 4096), **options)
        for shape in shapes
    )


RMS = ((8192, 2048), (8192, 4096), (8192, 8192), (32768, 4096), (262144, 128))
# widths beside a power of two, and beyond a register tile
WIDTHS = ((8192, 5120), (8192, 7168), (8192, 14336), (512, 131072))

FAMILY = Family(
    rows=(
        *rows("rms_norm", RMS),
        *rows("rms_norm", WIDTHS, alone=True),
        *rows(
            "rms_norm", ((8192, 4096), (8192, 8192)), note="frozen weight", frozen=("weight",),
            alone=True,
        ),
        *rows("fused_add_rms_norm", ((8192, 4096), (8192, 8192))),
        *rows("layer_norm", ((8192, 4096), (8192, 1024))),
        *rows("layer_norm", ((8192, 5120), (512, 131072)), alone=True),
    ),
    peers={
        "rms_norm": (
            Peer("eager", eager_rms_norm),
            # writes the gradient of x over the incoming one
            Peer("liger-kernel", liger_kernel_rms_norm, "liger-kernel", inplace=True),
            Peer("quack", quack_rms_norm, "quack-kernels"),
            Peer("fla", fla_rms_norm, "fla-core"),
        ),
        "fused_add_rms_norm": (
            Peer("eager", eager_add),
            Peer("liger-kernel", liger_kernel_add, "liger-kernel", inplace=True),
            Peer("quack", quack_add, "quack-kernels"),
        ),
        "layer_norm": (
            Peer("eager", eager_layer_norm),
            Peer("liger-kernel", liger_kernel_layer_norm, "liger-kernel"),
            Peer("fla", fla_layer_norm, "fla-core"),
        ),
    },
)  # fmt: skip
