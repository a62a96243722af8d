"""Parts whose numbers can be worked out by hand, and distillation."""

import math

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder
from liger_core.testing.running import device
from liger_losses import linear_log_probs
from liger_posttrain import LinearDistillationLoss, LinearGRPOLoss, LinearKTOLoss
from liger_posttrain.importance import high_entropy_mask, sampler_ratio
from liger_posttrain.kl import KL_ESTIMATORS, bias_corrected
from liger_posttrain.kto import bco_delta, kto_baseline
from liger_posttrain.linear_distillation import DISTILLATION
from liger_posttrain.policy import vespo_weight
from liger_posttrain.preference import discopop
from liger_posttrain.reductions import token_weights


def new(seed=0):
    return Builder(torch.float64, device(), seed)


def close(actual, expected):
    expected = torch.as_tensor(expected, dtype=actual.dtype, device=actual.device)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


def test_kl_estimators_in_expectation():
    """Weighed with p, each is the KL or near it, and the gradient of k2 is that of the KL."""
    z = new().normal(7).requires_grad_()
    log_p, log_ref = z.log_softmax(0), new(1).normal(7).log_softmax(0)
    p = log_p.detach().exp()
    kl = (log_p.exp() * (log_p - log_ref)).sum()
    (right,) = torch.autograd.grad(kl, z, retain_graph=True)
    found = {name: k(log_p, log_ref) for name, k in KL_ESTIMATORS.items()}
    close((p * found["k1"]).sum(), kl.detach())
    close((p * found["k3"]).sum(), kl.detach())
    ratio = (log_p - log_p.detach()).exp()
    for estimate in (found["k2"], bias_corrected(found["k3"], ratio)):
        (grad,) = torch.autograd.grad((p * estimate).sum(), z, retain_graph=True)
        close(grad, right)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [[2.0, 0.5, 1.0], [0.5, 1.0, 1.0]]),
        ("token_mask", [[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]]),
        ("sequence_truncate", [[2.0], [0.5]]),
        ("sequence_mask", [[2.0], [0.0]]),
    ],
)
def test_sampler_ratio(mode, expected):
    ratio = torch.tensor([[4.0, 0.5, 7.0], [0.25, 1.0, 1.0]], device=device())
    sampler, mask = new().normal(2, 3).float(), torch.ones(2, 3, device=device())
    mask[0, 2], old = 0.0, sampler + ratio.log()
    # what the sampler did not tell counts as the same
    sampler[1, 2] = float("nan")
    found = sampler_ratio(old, sampler, mask, mode=mode, clip_min=0.5, clip_max=2.0)
    close(found, expected)
    with pytest.raises(ValueError, match="mode must be one of"):
        sampler_ratio(old, sampler, mask, mode="mask")


def test_vespo_counts_the_ratio_of_a_sequence_once():
    log_ratio, mask = new().normal(2, 3, std=0.1), torch.ones(2, 3, device=device())
    mask[1, 2] = 0.0
    advantages = torch.tensor([[1.0], [-1.0]], device=device())
    tokens = new(1).uniform(2, 3, low=0.8, high=1.2)
    sequence = tokens.where(mask != 0, 1.0).prod(-1, keepdim=True)
    of_tokens = vespo_weight(log_ratio, advantages, mask, tokens)
    close(vespo_weight(log_ratio, advantages, mask, sequence), of_tokens)
    assert not torch.allclose(vespo_weight(log_ratio, advantages, mask), of_tokens)


def test_high_entropy():
    entropy = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.7, 2.0]], device=device())
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], device=device())
    top = torch.tensor([[0, 1, 0], [0, 1, 0]], device=device(), dtype=torch.bool)
    assert torch.equal(high_entropy_mask(entropy, mask, quantile=0.4), top)
    assert torch.equal(high_entropy_mask(entropy, mask, threshold=0.6), top)
    with pytest.raises(ValueError, match="quantile or threshold"):
        high_entropy_mask(entropy, mask)


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_threshold_is_quantile_of_tokens(entropy_coef):
    """The threshold of the local quantile gives the same, a token at a time."""
    x, W, target = new().normal(3, 5, 8), new(1).normal(40, 8), new(2).integers(40, 3, 5)
    target[0, :3] = -100
    log_p = (x @ W.t()).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    threshold = entropy[target != -100].quantile(0.65)
    chosen = ((entropy >= threshold) & (target != -100)).sum()
    tensors = {"advantages": new(3).normal(3)}
    loss = LinearGRPOLoss(top_entropy_quantile=0.35, entropy_coef=entropy_coef)
    right = loss(x, W, target, **tensors).loss
    loss = LinearGRPOLoss(entropy_coef=entropy_coef)
    tensors["entropy_threshold"] = threshold - 1e-6
    close(loss(x, W, target, **tensors).loss, right)
    close(loss(x, W, target, entropy_normalizer=chosen, **tensors).loss, right)


def test_token_weights():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], device=device())
    close(token_weights(mask, "grpo"), [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]])
    close(token_weights(mask, "luspo"), [[0.5, 0.5, 0.0], [0.5, 0.0, 0.0]])
    close(token_weights(mask, "dapo"), mask / 3)
    close(token_weights(mask, "dr_grpo", max_completion_length=10), mask / 20)
    close(token_weights(mask, "constant", normalizer=torch.tensor(8.0)), mask / 8)
    with pytest.raises(ValueError, match="needs a normalizer"):
        token_weights(mask, "constant")


def test_baselines():
    close(kto_baseline(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5])), 1.5)
    close(kto_baseline(torch.tensor([-1.0]), torch.tensor([0.5])), 0.0)
    rewards, desirable = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, False])
    close(bco_delta(rewards, desirable), (1.5 + 6.0) / 2)
    close(bco_delta(rewards, desirable, 1.0, momentum=0.5), 0.5 + 0.5 * 3.75)
    close(bco_delta(rewards, desirable | True, 1.0, momentum=0.5), 1.0)


def divergence(name, log_q, log_p, z, y):
    q, p, beta = log_q.exp(), log_p.exp(), 0.3
    m = (beta * p + (1 - beta) * q).log()
    return {
        "forward_kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "jsd": (beta * p * (log_p - m) + (1 - beta) * q * (log_q - m)).sum(-1),
        "tvd": 0.5 * (p - q).abs().sum(-1),
        "cosine": 1 - (z * y).sum(-1) / (z.norm(dim=-1) * y.norm(dim=-1)),
    }[name]


@pytest.mark.parametrize("loss_type", DISTILLATION)
def test_distillation(loss_type):
    B, T, H, V, k, temperature = 2, 6, 8, 40, 3, 1.7
    x, W, b = (
        t.requires_grad_() for t in (new().normal(B, T, H), new(1).normal(V, H), new(2).normal(V))
    )
    tx, tW, target = new(3).normal(B, T, 4), new(4).normal(V, 4), new(5).integers(V, B, T)
    target[0, :2] = -100
    counts, z, y = target != -100, 0.5 * (x @ W.t() + b), 0.5 * (tx @ tW.t())
    log_q, log_p = (t / temperature for t in (z, y))
    log_q, log_p = log_q.log_softmax(-1), log_p.log_softmax(-1)
    if loss_type == "top_k":
        listed, ids = log_p.topk(k)
        teacher = {"target_log_probs": listed, "target_ids": ids}
        soft = (listed.exp() * (listed - log_q.gather(-1, ids))).sum(-1)
    else:
        teacher = {"ref_input": tx, "ref_weight": tW}
        soft = divergence(loss_type, log_q, log_p, z, y)
    options = {"beta": 0.3} if loss_type == "jsd" else {}
    loss = LinearDistillationLoss(
        loss_type=loss_type, soft_weight=0.8, hard_weight=0.3, temperature=temperature,
        logit_scale=0.5, **options,
    )  # fmt: skip
    out = loss(x, W, target, linear_bias=b, **teacher)
    right = 0.8 * soft[counts].mean() + 0.3 * F.cross_entropy(z[counts], target[counts])
    close(out.loss, right.detach())
    close(out.metrics["soft_loss"], soft[counts].mean().detach())
    for a, e in zip(*(torch.autograd.grad(t, (x, W, b)) for t in (out.loss, right)), strict=True):
        assert (a - e).norm() <= 1e-6 * e.norm()


def test_distillation_by_policy_gradient():
    """An advantage for each token: the teacher's log-probability above one's own."""
    x, W, target = (
        new().normal(2, 4, 8).requires_grad_(),
        new(1).normal(40, 8),
        new(2).integers(40, 2, 4),
    )
    lp = (x @ W.t()).log_softmax(-1).gather(-1, target[..., None])[..., 0]
    teacher = lp.detach() + new(3).normal(2, 4)
    advantages = teacher - lp.detach()
    out = LinearGRPOLoss(loss_type="reinforce")(x, W, target, advantages=advantages)
    right = -(advantages * lp).mean()
    for a, e in zip(*(torch.autograd.grad(t, x) for t in (out.loss, right)), strict=True):
        close(a, e)
    assert math.isfinite(out.loss.item())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=str)
def test_entropy_quantile_of_no_tokens(shape):
    x, W = new().normal(*shape, 8).requires_grad_(), new(1).normal(40, 8)
    target = torch.zeros(shape, dtype=torch.long, device=x.device)
    advantages = torch.zeros(shape[0], device=x.device)
    out = LinearGRPOLoss(top_entropy_quantile=0.5)(x, W, target, advantages=advantages)
    assert out.loss == 0


def random_head(dtype=torch.float32):
    make = [Builder(dtype, device(), seed) for seed in range(3)]
    x, W = make[0].normal(3, 7, 8), make[1].normal(30, 8)
    return x.requires_grad_(), W.requires_grad_(), make[2].integers(30, 3, 7)


@pytest.mark.parametrize("loss_type", ["rloo", "grpo", "dapo", "sapo"])
def test_ratio_that_overflows_is_clipped(loss_type):
    """One gained far more probability than fp32 can hold the ratio of."""
    x, W, target = random_head()
    old = linear_log_probs(x, W, target).log_probs.detach()
    old[0] -= 100.0
    advantages = torch.tensor([1.0, -1.0, 0.5], device=device())
    loss = LinearGRPOLoss(loss_type=loss_type)(
        x, W, target, advantages=advantages, old_log_probs=old
    ).loss
    grads = torch.autograd.grad(loss, (x, W))
    assert all(t.isfinite().all() for t in (loss, *grads))
    assert not grads[0][0].any()
    assert grads[0][1].any()


def test_discopop_far_from_its_reference():
    chosen = torch.tensor([-500.0, 500.0], device=device(), requires_grad=True)
    loss = discopop(chosen, torch.zeros_like(chosen), beta=1.0)
    loss.sum().backward()
    close(loss, [500.0, 0.0])
    close(chosen.grad, [-1.0, 0.0])


def test_sequence_without_tokens_may_have_any_advantage():
    x, W, target = random_head()
    target[1] = -100
    advantages = torch.tensor([1.0, float("nan"), 0.5], device=device())
    for loss_type in ("gspo", "grpo"):
        loss = LinearGRPOLoss(loss_type=loss_type)(x, W, target, advantages=advantages).loss
        assert loss.isfinite()


def test_numbers_do_not_take_the_default_dtype():
    x, W, target = random_head()
    advantages = torch.tensor([1.0, -1.0, 0.5], device=device())
    desirable = torch.tensor([True, False, True], device=device())

    def losses():
        yield LinearGRPOLoss(loss_type="sapo")(x, W, target, advantages=advantages)
        kto = LinearKTOLoss(desirable_weight=1.33)
        yield kto(x, W, target, desirable=desirable, ref_log_probs=log_probs, baseline=0.1)

    log_probs = linear_log_probs(x, W, target).log_probs.detach() - 0.2
    expected = [out.loss for out in losses()]
    torch.set_default_dtype(torch.bfloat16)
    try:
        for out, right in zip(losses(), expected, strict=True):
            close(out.loss, right.detach())
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_normalizer_is_one_number():
    x, W, target = random_head()
    with pytest.raises(ValueError, match=r"normalizer \(3,\) must be one number"):
        LinearGRPOLoss()(x, W, target, advantages=x.new_zeros(3), normalizer=x.new_ones(3))


def test_listed_log_probs_take_no_bias():
    x, W, target = random_head()
    ids = torch.zeros(3, 7, 2, dtype=torch.int64, device=device())
    listed = {"target_log_probs": torch.full((3, 7, 2), -1.0, device=device()), "target_ids": ids}
    loss = LinearDistillationLoss(loss_type="top_k")
    loss(x, W, target, **listed)
    with pytest.raises(ValueError, match="no other"):
        loss(x, W, target, **listed, ref_bias=W.new_zeros(30))


@pytest.mark.parametrize("loss_type", ["grpo", "rloo", "gmpo", "dr_grpo", "dapo"])
def test_compiled_for_completions_of_any_length(loss_type):
    torch._dynamo.reset()
    loss, (_, W, _) = LinearGRPOLoss(loss_type=loss_type), random_head()
    compiled = torch.compile(
        lambda x, y, a: loss(x, W, y, advantages=a).loss, backend="eager", fullgraph=True
    )
    for T in (5, 7, 9):
        make = Builder(torch.float32, device(), T)
        given = make.normal(4, T, 8), make.integers(30, 4, T), make.normal(4)
        close(compiled(*given), loss(given[0], W, given[1], advantages=given[2]).loss.detach())
