"""Cross entropy and the fused head: rows and peers of `python -m liger_core.bench run losses`."""

import torch
import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row, compiled


def logits(new, shape):
    return {"input": new.normal(*shape, std=2.0), "target": new.integers(shape[1], shape[0])}


def hidden(new, shape):
    """Logits of unit variance."""
    M, H, V = shape
    return {
        "input": new.normal(M, H),
        "linear_weight": new.normal(V, H) * H**-0.5,
        "target": new.integers(V, M),
    }


def ignore_half(given):
    given["target"][::2] = -100


def eager():
    return lambda input, target: F.cross_entropy(input.float(), target)


def liger_kernel():
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda input, target: liger_cross_entropy(input, target)


def quack():
    from quack import cross_entropy

    return lambda input, target: cross_entropy(input, target)


def fla():
    from fla.modules.fused_cross_entropy.ops import cross_entropy_loss

    def mean(input, target):
        losses, _ = cross_entropy_loss(input, target)
        return losses.sum() / (target != -100).sum()

    return mean


def eager_head():
    return lambda input, linear_weight, target: F.cross_entropy(
        F.linear(input, linear_weight).float(), target
    )


def chunked_by_inductor():
    return compiled(eager_head, **{"auto_chunker.enable": True})


def torch_head():
    if not hasattr(F, "linear_cross_entropy"):
        raise NotImplementedError(f"torch {torch.__version__} has no linear_cross_entropy")
    return lambda input, linear_weight, target: F.linear_cross_entropy(input, linear_weight, target)


def liger_kernel_head(**options):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda input, linear_weight, target: liger_fused_linear_cross_entropy(
        input, linear_weight, target, **options
    )


def liger_kernel_head_fp32():
    return liger_kernel_head(accum_dtype=torch.float32)


def quack_head():
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    # its chunks of 4096 rows refuse a hidden size of 4096
    return lambda input, linear_weight, target: chunked_linear_cross_entropy(
        input, linear_weight, target, chunk_size=2048
    )


def cut_cross_entropy():
    from cut_cross_entropy import linear_cross_entropy

    return lambda input, linear_weight, target: linear_cross_entropy(input, linear_weight, target)


def fla_head():
    from fla.modules.fused_linear_cross_entropy.ops import fused_linear_cross_entropy_loss

    return lambda input, linear_weight, target: fused_linear_cross_entropy_loss(
        input, target, linear_weight
    )


def read_and_write(M, V):
    return 2 * M * V * 2


def gemms(count):
    return lambda M, H, V: 2 * count * M * H * V


CE = {"op": "cross_entropy", "small": (32, 256), "inputs": logits}
# no graph: a captured head computes ignored tokens too
LCE = {"op": "linear_cross_entropy", "small": (64, 32, 256), "inputs": hidden, "graph": False}
LOGITS, LLAMA, QWEN = (8192, 128256), (8192, 4096, 128256), (16384, 896, 151936)
ONE_MORE = (8192, 4096, 128257)
GEMMA, LONG, SHORT, SHORTER = (
    (8192, 2304, 256000), (32768, 2048, 128256), (4096, 4096, 128256), (2048, 4096, 128256)
)  # fmt: skip

FAMILY = Family(
    rows=(
        Row(**CE, shape=(8192, 32000), traffic=read_and_write),
        Row(
            **CE,
            shape=(8192, 32000),
            note="handed-over buffer",
            ours={"inplace": True},
            inplace=True,
            traffic=read_and_write,
            alone=True,
        ),
        Row(**CE, shape=LOGITS, traffic=read_and_write, readme=True),
        Row(
            **CE,
            shape=LOGITS,
            note="handed-over buffer",
            ours={"inplace": True},
            inplace=True,
            traffic=read_and_write,
            alone=True,
        ),
        Row(**CE, shape=LOGITS, note="loss only", traffic=lambda M, V: M * V * 2, grad=False),
        Row(**LCE, shape=LLAMA, flops=gemms(3), readme=True),
        Row(**LCE, shape=ONE_MORE, note="a token more", flops=gemms(3), readme=True),
        Row(
            **LCE,
            shape=LLAMA,
            note="half of the tokens ignored",
            edit=ignore_half,
            flops=gemms(1.5),
            alone=True,
            readme=True,
        ),
        Row(
            **LCE,
            shape=LLAMA,
            note="low memory",
            ours={"chunk_bytes": 3 * 2**26},
            flops=gemms(3),
            alone=True,
        ),
        Row(
            **LCE,
            shape=LLAMA,
            note="frozen head",
            frozen=("linear_weight",),
            flops=gemms(2),
            alone=True,
        ),
        Row(**LCE, shape=LLAMA, note="loss only", grad=False, flops=gemms(1), alone=True),
        Row(**LCE, shape=QWEN, flops=gemms(3)),
        Row(**LCE, shape=GEMMA, flops=gemms(3), alone=True),
        Row(**LCE, shape=LONG, flops=gemms(3), alone=True),
        Row(**LCE, shape=SHORT, flops=gemms(3), alone=True),
        Row(**LCE, shape=SHORTER, flops=gemms(3), alone=True),
    ),
    peers={
        "cross_entropy": (
            Peer("eager", eager),
            # writes the gradient over the logits; reads the number of valid tokens back
            Peer("liger-kernel", liger_kernel, "liger-kernel", inplace=True, graph=False),
            Peer("quack", quack, "quack-kernels"),
            Peer("fla", fla, "fla-core"),
        ),
        "linear_cross_entropy": (
            Peer("eager", eager_head),
            Peer("auto-chunk", chunked_by_inductor),
            Peer("torch-fused", torch_head),
            Peer("liger-kernel", liger_kernel_head, "liger-kernel"),
            Peer("liger-fp32", liger_kernel_head_fp32, "liger-kernel"),
            Peer("quack", quack_head, "quack-kernels"),
            Peer("cce", cut_cross_entropy, "cut-cross-entropy"),
            Peer("fla", fla_head, "fla-core"),
        ),
    },
    heads=(LLAMA, QWEN, GEMMA, LONG, SHORT, SHORTER),
)
