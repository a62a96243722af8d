"""The two losses that tests of all contracts and benchmarks take for all: of tokens, and of pairs.

Others differ from them by a formula, which test_formulas.py is about.
"""

import torch
import torch.nn.functional as F
from liger_core.testing import OpSpec, replace
from liger_posttrain import linear_dpo_loss, linear_grpo_loss
from torch.utils.checkpoint import checkpoint

BETA = 0.1
TOKENS = 4096


def of_tokens(x, W, target):
    z = F.linear(x, W)
    log_p = z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1)
    found = log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return found.where(target != -100, 0.0)


def log_probs(x, W, target):
    """Of tokens, from the logits of some at a time, made again in the backward."""
    parts = zip(x.flatten(0, 1).split(TOKENS), target.flatten().split(TOKENS), strict=True)
    found = [checkpoint(of_tokens, x, W, target, use_reentrant=False) for x, target in parts]
    return torch.cat(found).view(target.shape) if found else x.sum(-1) * 0.0


def grpo(input, linear_weight, target, advantages, ref_log_probs, **options):
    return linear_grpo_loss(
        input, linear_weight, target, advantages=advantages, ref_log_probs=ref_log_probs,
        loss_type="bnpo", beta=BETA, **options,
    ).loss  # fmt: skip


def grpo_ref(input, linear_weight, target, advantages, ref_log_probs):
    log_p = log_probs(input, linear_weight, target)
    counts = target != -100
    d = (ref_log_probs - log_p) * counts
    ratio = (log_p - log_p.detach()).exp()
    losses = -ratio * advantages[:, None] + BETA * (torch.expm1(d) - d)
    return (losses * counts).sum() / counts.sum().clamp(min=1)


def dpo(input, linear_weight, target, ref_input, ref_weight, **options):
    return linear_dpo_loss(
        input, linear_weight, target, ref_input=ref_input, ref_weight=ref_weight, beta=BETA,
        **options,
    ).loss  # fmt: skip


def dpo_ref(input, linear_weight, target, ref_input, ref_weight):
    with torch.no_grad():
        ref = log_probs(ref_input, ref_weight, target).sum(-1)
    chosen, rejected = (log_probs(input, linear_weight, target).sum(-1) - ref).chunk(2)
    counted = (target != -100).any(-1).view(2, -1).any(0)
    losses = -F.logsigmoid(BETA * (chosen - rejected)).where(counted, 0.0)
    return losses.sum() / max(len(losses), 1)


def hidden(new, shape):
    """Logits of unit variance; a third of the tokens are those of a prompt."""
    B, T, H, V = shape
    target = new.integers(V, B, T)
    target[:, : T // 3] = -100
    return {
        "input": new.normal(B, T, H),
        "linear_weight": new.normal(V, H, std=H**-0.5),
        "target": target,
    }


def of_policy(new, shape):
    B, T, _, V = shape
    near = new.normal(B, T, std=0.5) - float(torch.tensor(float(V)).log())
    return {**hidden(new, shape), "advantages": new.normal(B), "ref_log_probs": near}


def of_pairs(new, shape):
    _, _, H, V = shape
    given = hidden(new, shape)
    ref_input = given["input"] + new.normal(*given["input"].shape, std=0.1)
    ref_weight = given["linear_weight"] + new.normal(V, H, std=0.1 * H**-0.5)
    return {**given, "ref_input": ref_input, "ref_weight": ref_weight}


ERRORS = (
    (replace(target=lambda a: a["target"].float()), TypeError, "class indices"),
    (replace(target=lambda a: a["target"][:, 1:]), ValueError, r"must be \[B, T, H\]"),
    (replace(linear_weight=lambda a: a["linear_weight"][:, 1:]), ValueError, "must be"),
    (replace(input=lambda a: a["input"].long()), TypeError, "input"),
)
SKIPS = {
    "large_offsets": "its only kernels are those of log_probs",
    "bench_launches": "its only kernels are those of log_probs, which lists their shapes",
    "huge": "its only kernels are those of log_probs",
    "no_host_sync": "it reads once which tokens count; in a graph not even that",
    "cuda_graph": "a graph computes every token",
    "batch_invariance": "its result is one number",
    "gradcheck": "needs a second backward; test_formulas.py compares the gradients with fp64",
    "edge_size_one": "one class has probability 1 up to rounding",
    "edge_wide": "its only kernels are those of log_probs",
    "edge_one_row": "one sequence is too few for eager's rounding to be a fair measure",
}
SHAPES = ((4, 12, 16, 63), (2, 40, 16, 65), (0, 4, 8, 16))

SPECS = [
    OpSpec(
        name="linear_grpo_loss",
        op=grpo,
        ref=grpo_ref,
        inputs=of_policy,
        shapes=SHAPES,
        grad=("input", "linear_weight"),
        skips=SKIPS,
        errors=ERRORS,
    ),
    OpSpec(
        name="linear_dpo_loss",
        op=dpo,
        ref=dpo_ref,
        inputs=of_pairs,
        shapes=SHAPES,
        grad=("input", "linear_weight"),
        skips=SKIPS,
        errors=ERRORS,
    ),
]
