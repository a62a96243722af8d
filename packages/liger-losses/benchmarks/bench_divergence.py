"""Divergences: rows and peers of `python -m liger_core.bench run losses`."""

import torch
import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row


def logits(new, shape):
    return {"input": new.normal(*shape, std=2.0), "target": new.normal(*shape, std=2.0)}


def log_probs(new, shape):
    return {name: x.log_softmax(-1) for name, x in logits(new, shape).items()}


def probabilities(new, shape):
    made = log_probs(new, shape)
    return {**made, "target": made["target"].exp_()}


def heads(new, shape):
    """Logits of unit variance."""
    M, H, V = shape
    made = {}
    for name in ("student", "teacher"):
        made[f"{name}_input"] = new.normal(M, H)
        made[f"{name}_weight"] = new.normal(V, H) * H**-0.5
    return made


def eager_kl():
    return lambda input, target: F.kl_div(input.float(), target.float(), reduction="batchmean")


def _jsd(input, target):
    q, p = input.float(), target.float()
    m = torch.logaddexp(q, p) - 0.6931471805599453
    return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1).mean()


def eager_jsd():
    return _jsd


def eager_logits_jsd():
    return lambda input, target: _jsd(input.float().log_softmax(-1), target.float().log_softmax(-1))


def eager_tvd():
    return lambda input, target: (
        0.5 * (input.float().exp() - target.float().exp()).abs().sum(-1).mean()
    )


def liger_kernel_kl():
    from liger_kernel.transformers.functional import liger_kl_div

    return lambda input, target: liger_kl_div(input, target, reduction="batchmean")


def liger_kernel_jsd():
    from liger_kernel.transformers.functional import liger_jsd

    return lambda input, target: liger_jsd(input, target)


def eager_heads():
    def loss(student_input, student_weight, teacher_input, teacher_weight):
        z = F.linear(student_input, student_weight).float().log_softmax(-1)
        y = F.linear(teacher_input, teacher_weight).float().log_softmax(-1)
        return _jsd(z, y)

    return loss


def liger_kernel_heads():
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD()
    return lambda student_input, student_weight, teacher_input, teacher_weight: loss(
        student_input, student_weight, teacher_input, teacher_weight, None
    )


def four_products(M, H, V):
    return 8 * M * H * V


def read_read_write(M, V):
    return 3 * M * V * 2


SHAPE = (4096, 128256)
COMMON = {"shape": SHAPE, "small": (32, 256), "traffic": read_read_write}

FAMILY = Family(
    rows=(
        Row("kl_div", **COMMON, inputs=probabilities, options={"reduction": "batchmean"}),
        Row("jsd", **COMMON, inputs=log_probs, readme=True),
        Row("tvd", **COMMON, inputs=log_probs),
        Row(
            "jsd_from_logits",
            **COMMON,
            inputs=logits,
            options={"from_logits": True},
        ),
        # no graph: a captured head computes ignored tokens too
        Row(
            "linear_jsd",
            (4096, 4096, 128256),
            (64, 32, 256),
            inputs=heads,
            flops=four_products,
            graph=False,
        ),
    ),
    peers={
        "kl_div": (
            Peer("eager", eager_kl),
            Peer("liger-kernel", liger_kernel_kl, "liger-kernel"),
        ),
        "jsd": (
            Peer("eager", eager_jsd),
            Peer("liger-kernel", liger_kernel_jsd, "liger-kernel"),
        ),
        "tvd": (Peer("eager", eager_tvd),),
        "jsd_from_logits": (Peer("eager", eager_logits_jsd),),
        "linear_jsd": (
            Peer("eager", eager_heads),
            Peer("liger-kernel", liger_kernel_heads, "liger-kernel"),
        ),
    },
)
