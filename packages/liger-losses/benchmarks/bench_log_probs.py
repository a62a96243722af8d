"""Log-probabilities and entropy: rows and peers of `python -m liger_core.bench run losses`."""

import torch
import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row


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


def statistics(logits, target):
    log_p = logits.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, target[:, None])[:, 0], entropy


def eager():
    return lambda input, target: statistics(input, target)


def eager_head():
    return lambda input, linear_weight, target: statistics(F.linear(input, linear_weight), target)


def recomputing_head():
    """Without logits between forward and backward."""
    head = eager_head()
    return lambda **inputs: torch.utils.checkpoint.checkpoint(
        head, inputs["input"], inputs["linear_weight"], inputs["target"], use_reentrant=False
    )


def trl_head():
    from trl.kernels import ChunkedLogProbFunction

    def call(input, linear_weight, target):
        log_probs, entropy, *_ = ChunkedLogProbFunction.apply(
            input, linear_weight, None, target, 1.0, 32768, None, 1.0, ("entropy",)
        )
        return log_probs, entropy

    return call


def products(count):
    return lambda M, H, V: 2 * count * M * H * V


LLAMA = (8192, 4096, 128256)
# log-probability and entropy of the three statistics that are always or on request returned
POLICY = {"outputs": (0, 2), "options": {"statistics": ("entropy",)}}
HEAD = {
    "op": "linear_log_probs",
    "shape": LLAMA,
    "small": (64, 32, 256),
    "inputs": hidden,
    # a captured head computes ignored tokens too
    "graph": False,
    **POLICY,
}

FAMILY = Family(
    rows=(
        Row("log_probs", (8192, 128256), (32, 256), inputs=logits, note="with entropy", **POLICY),
        Row(**HEAD, note="with entropy", flops=products(4)),
        Row(**HEAD, note="with entropy, no gradient", grad=False, flops=products(1)),
    ),
    peers={
        "log_probs": (Peer("eager", eager),),
        "linear_log_probs": (
            Peer("eager", eager_head),
            Peer("checkpoint", recomputing_head),
            Peer("trl", trl_head, "trl"),
        ),
    },
    heads=(LLAMA,),
)
