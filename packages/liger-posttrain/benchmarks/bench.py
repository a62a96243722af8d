"""Losses of policies and of pairs: rows and peers of `python -m liger_core.bench run posttrain`.

The ops of tests/specs.py: of a policy, the mean over all tokens with a KL from given
log-probabilities; of pairs, DPO with a reference head.
"""

import torch
import torch.nn.functional as F
from liger_core.bench import Family, Peer, Row

BETA = 0.1
EVERYTHING = ("entropy", "mean_logits", "argmax")


def prompt_of_half(given):
    target = given["target"]
    target[:, : target.shape[1] // 2] = -100


def no_prompt(given):
    target, V = given["target"], given["linear_weight"].shape[0]
    target.copy_(torch.randint(V, target.shape, device=target.device))


def gemms(count):
    """Matrix products of all tokens; rows with a prompt have half of them."""
    return lambda B, T, H, V: 2 * count * B * T * H * V


def grpo_of(log_probs, target, advantages, ref_log_probs):
    """The formula alone, on log-probabilities of tokens [B, T]."""
    counts = target != -100
    d = (ref_log_probs - log_probs) * counts
    ratio = (log_probs - log_probs.detach()).exp()
    losses = -ratio * advantages[:, None] + BETA * (torch.expm1(d) - d)
    return (losses * counts).sum() / counts.sum()


def dpo_of(log_probs, ref_log_probs):
    chosen, rejected = (log_probs.sum(-1) - ref_log_probs.sum(-1)).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


def liger_kernel_grpo():
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=BETA, use_ref_model=True, loss_type="bnpo")

    def grpo(input, linear_weight, target, advantages, ref_log_probs):
        found, _ = loss(
            _input=input, lin_weight=linear_weight, selected_token_ids=target.clamp(min=0),
            attention_mask=(target != -100).to(input.dtype), advantages=advantages,
            ref_per_token_logps=ref_log_probs,
        )  # fmt: skip
        return found

    return grpo


def liger_kernel_dpo():
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=True)

    def dpo(input, linear_weight, target, ref_input, ref_weight):
        found, _ = loss(linear_weight, input, target, None, ref_input, ref_weight, None)
        return found

    return dpo


def trl_head():
    """Log-probabilities of TRL's fused head, which takes the tokens that count."""
    from trl.kernels import ChunkedLogProbFunction

    def log_probs(x, W, target):
        counts = target != -100
        found = ChunkedLogProbFunction.apply(
            x[counts], W, None, target[counts], 1.0, 32768, None, 1.0, ()
        )[0]
        return found.new_zeros(target.shape).masked_scatter(counts, found)

    return log_probs


def trl_grpo():
    log_probs = trl_head()
    return lambda input, linear_weight, target, advantages, ref_log_probs: grpo_of(
        log_probs(input, linear_weight, target), target, advantages, ref_log_probs
    )


def trl_dpo():
    log_probs = trl_head()

    def dpo(input, linear_weight, target, ref_input, ref_weight):
        with torch.no_grad():
            ref = log_probs(ref_input, ref_weight, target)
        return dpo_of(log_probs(input, linear_weight, target), ref)

    return dpo


# which tokens count is read back from the device
LIGER = {"package": "liger-kernel", "graph": False}
TRL = {"package": "trl", "graph": False}
# no graph: a captured head computes ignored tokens too
ALL = {"edit": no_prompt, "graph": False}
HALF = {"edit": prompt_of_half, "graph": False}
GRPO = {"op": "linear_grpo_loss", "small": (2, 16, 32, 256)}
DPO = {"op": "linear_dpo_loss", "small": (4, 16, 32, 256)}
LLAMA = (4096, 128256)

FAMILY = Family(
    rows=(
        Row(**GRPO, **ALL, shape=(8, 1024, *LLAMA), flops=gemms(3), readme=True),
        Row(
            **GRPO,
            **ALL,
            shape=(8, 1024, *LLAMA),
            note="entropy, mean logit, accuracy",
            ours={"statistics": EVERYTHING},
            flops=gemms(3),
            alone=True,
        ),
        Row(
            **GRPO,
            **HALF,
            shape=(8, 1024, *LLAMA),
            note="half of the tokens a prompt",
            flops=gemms(1.5),
            alone=True,
        ),
        Row(**GRPO, **ALL, shape=(1, 65536, *LLAMA), note="one sequence", flops=gemms(3)),
        Row(
            **GRPO,
            **ALL,
            shape=(1, 65536, *LLAMA),
            note="one sequence, its ratio",
            ours={"importance_sampling_level": "sequence"},
            flops=gemms(4),
            alone=True,
        ),
        Row(
            **DPO,
            **ALL,
            shape=(16, 1024, *LLAMA),
            note="8 pairs, reference head",
            flops=gemms(4),
            readme=True,
        ),
    ),
    peers={
        # eager is the reference of the specs: checkpoints of 4096 tokens
        "linear_grpo_loss": (
            Peer("liger-kernel", liger_kernel_grpo, **LIGER),
            Peer("trl", trl_grpo, **TRL),
        ),
        "linear_dpo_loss": (
            Peer("liger-kernel", liger_kernel_dpo, **LIGER),
            Peer("trl", trl_dpo, **TRL),
        ),
    },
    heads=((8 * 1024, *LLAMA), (16 * 1024, *LLAMA)),
)
