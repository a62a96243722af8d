"""GLU, also with a projection, and squared ReLU: rows of `liger_core.bench run activations`."""

import torch
import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row


def inputs(new, shape):
    return {"gate": new.normal(*shape), "up": new.normal(*shape)}


def projected(new, shape):
    """Without a bias, as in Llama."""
    M, N, H = shape
    return {**inputs(new, (M, N)), "weight": new.normal(H, N, std=N**-0.5)}


def eager_swiglu_linear():
    return lambda gate, up, weight: F.linear(F.silu(gate) * up, weight)


def eager_swiglu():
    return lambda gate, up: F.silu(gate) * up


def eager_geglu():
    return lambda gate, up: F.gelu(gate, approximate="tanh") * up


def eager_geglu_exact():
    return lambda gate, up: F.gelu(gate) * up


def eager_swiglu_in_one():
    def function(gate):
        gate, up = gate.chunk(2, dim=-1)
        return F.silu(gate) * up

    return function


def eager_swiglu_clamped():
    """As in gpt-oss."""

    def function(gate):
        gate, up = gate[..., ::2], gate[..., 1::2]
        gate, up = gate.clamp(max=7.0), up.clamp(min=-7.0, max=7.0)
        return (up + 1) * (gate * torch.sigmoid(gate * 1.702))

    return function


def eager_relu_squared():
    return lambda x: torch.square(F.relu(x))


def liger_kernel_swiglu():
    from liger_kernel.transformers.functional import liger_swiglu

    return lambda gate, up: liger_swiglu(gate, up)


def liger_kernel_swiglu_linear():
    swiglu = liger_kernel_swiglu()
    return lambda gate, up, weight: F.linear(swiglu(gate, up), weight)


def liger_kernel_geglu():
    from liger_kernel.transformers.functional import liger_geglu

    return lambda gate, up: liger_geglu(gate, up)


def liger_kernel_swiglu_in_one():
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    return lambda gate: LigerFusedGateUpSiLUMulFunction.apply(gate)


def liger_kernel_relu_squared():
    from liger_kernel.transformers.functional import liger_relu_squared

    return lambda x: liger_relu_squared(x)


def fla_relu_squared():
    from fla.modules.activations import sqrelu

    return lambda x: sqrelu(x)


def fla_swiglu():
    from fla.modules.activations import swiglu

    return lambda gate, up: swiglu(gate, up)


def traffic(M, N):
    """Forward: two reads, one write; backward: three reads, two writes."""
    return 8 * M * N * 2


GLU = {"op": "glu", "shape": (8192, 14336), "small": (32, 128), "inputs": inputs}
IN_ONE = {"op": "glu_in_one", "small": (32, 128)}
TANH = {"activation": "gelu_tanh"}
EXACT = {"activation": "gelu"}
GPT_OSS = {"layout": "interleaved", "alpha": 1.702, "limit": 7.0, "up_offset": 1.0}

FAMILY = Family(
    rows=(
        Row(**GLU, name="swiglu", traffic=traffic, readme=True),
        Row(**GLU, name="geglu", note="tanh", traffic=traffic, options=TANH, readme=True),
        Row(**GLU, name="geglu_exact", note="erf", traffic=traffic, options=EXACT, readme=True),
        Row(
            "glu_linear",
            (8192, 14336, 4096),
            small=(32, 128, 64),
            inputs=projected,
            flops=lambda M, N, H: 6 * M * N * H,
            readme=True,
        ),
        Row(**IN_ONE, shape=(8192, 14336), name="swiglu_in_one", note="concatenated"),
        Row(
            **IN_ONE,
            shape=(8192, 2880),
            name="swiglu_clamped",
            note="interleaved",
            options=GPT_OSS,
        ),
        Row("relu_squared", (8192, 14336), small=(32, 128)),
    ),
    peers={
        "swiglu": (
            Peer("eager", eager_swiglu),
            # the backward writes the gradients over gate and up
            Peer("liger-kernel", liger_kernel_swiglu, "liger-kernel", inplace=True),
            Peer("fla", fla_swiglu, "fla-core"),
        ),
        "glu_linear": (
            Peer("eager", eager_swiglu_linear),
            Peer("liger-kernel", liger_kernel_swiglu_linear, "liger-kernel", inplace=True),
        ),
        "geglu": (
            Peer("eager", eager_geglu),
            Peer("liger-kernel", liger_kernel_geglu, "liger-kernel", inplace=True),
        ),
        "geglu_exact": (Peer("eager", eager_geglu_exact),),
        "swiglu_in_one": (
            Peer("eager", eager_swiglu_in_one),
            Peer("liger-kernel", liger_kernel_swiglu_in_one, "liger-kernel"),
        ),
        "swiglu_clamped": (Peer("eager", eager_swiglu_clamped),),
        "relu_squared": (
            Peer("eager", eager_relu_squared),
            Peer("liger-kernel", liger_kernel_relu_squared, "liger-kernel"),
            Peer("fla", fla_relu_squared, "fla-core"),
        ),
    },
)
