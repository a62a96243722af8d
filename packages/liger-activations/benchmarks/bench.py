"""Gated linear units: rows and peers of `python -m liger_core.bench run activations`."""

import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row


def inputs(new, shape):
    return {"gate": new.normal(*shape), "up": new.normal(*shape)}


def eager_swiglu():
    return lambda gate, up: F.silu(gate) * up


def eager_geglu():
    return lambda gate, up: F.gelu(gate, approximate="tanh") * up


def liger_kernel_swiglu():
    from liger_kernel.transformers.functional import liger_swiglu

    return lambda gate, up: liger_swiglu(gate, up)


def liger_kernel_geglu():
    from liger_kernel.transformers.functional import liger_geglu

    return lambda gate, up: liger_geglu(gate, up)


def fla_swiglu():
    from fla.modules.activations import swiglu

    return lambda gate, up: swiglu(gate, up)


def traffic(M, N):
    """Forward: two reads, one write; backward: three reads, two writes."""
    return 8 * M * N * 2


GLU = {"op": "glu", "shape": (8192, 14336), "small": (32, 128), "inputs": inputs}
TANH = {"activation": "gelu_tanh"}

FAMILY = Family(
    rows=(
        Row(**GLU, name="swiglu", traffic=traffic, readme=True),
        Row(**GLU, name="geglu", note="tanh", traffic=traffic, options=TANH, readme=True),
    ),
    peers={
        "swiglu": (
            Peer("eager", eager_swiglu),
            # the backward writes the gradients over gate and up
            Peer("liger-kernel", liger_kernel_swiglu, "liger-kernel", inplace=True),
            Peer("fla", fla_swiglu, "fla-core"),
        ),
        "geglu": (
            Peer("eager", eager_geglu),
            Peer("liger-kernel", liger_kernel_geglu, "liger-kernel", inplace=True),
        ),
    },
)
