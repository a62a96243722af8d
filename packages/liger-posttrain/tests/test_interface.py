"""What all losses have in common: products, options, errors, metrics, empty batches."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.running import device
from liger_losses import linear_log_probs
from liger_posttrain import (
    LinearCPOLoss,
    LinearDistillationLoss,
    LinearDPOLoss,
    LinearGRPOLoss,
    LinearKTOLoss,
    LinearORPOLoss,
    LinearSimPOLoss,
    linear_dpo_loss,
    linear_grpo_loss,
)

B, T, H, V = 4, 6, 8, 40


def new(seed=0, dtype=torch.float32):
    return Builder(dtype, device(), seed)


def head(rows=B, length=T, dtype=torch.float32):
    x = new(0, dtype).normal(rows, length, H).requires_grad_()
    W = new(1, dtype).normal(V, H).requires_grad_()
    target = new(3).integers(V, rows, length)
    target[:, :2] = -100
    return x, W, target


def reference():
    return {"ref_input": new(5).normal(B, T, 4), "ref_weight": new(6).normal(V, 4)}


def cases():
    desirable = torch.tensor([True, False, True, False], device=device())
    return {
        "grpo": (LinearGRPOLoss(beta=0.1), {"advantages": new(7).normal(B), **reference()}),
        "gspo": (LinearGRPOLoss(loss_type="gspo"), {"advantages": new(7).normal(B)}),
        "dpo": (LinearDPOLoss(), reference()),
        "aot": (LinearDPOLoss(loss_type="aot"), reference()),
        "cpo": (LinearCPOLoss(), {}),
        "simpo": (LinearSimPOLoss(), {}),
        "orpo": (LinearORPOLoss(), {}),
        "kto": (LinearKTOLoss(), {"desirable": desirable, "baseline": 0.1, **reference()}),
        "distillation": (LinearDistillationLoss(hard_weight=0.5), reference()),
    }


NAMES = list(cases())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_counts(name):
    loss, tensors = cases()[name]
    x, W, target = head()
    out = loss(x, W, target, mask=torch.zeros_like(target), **tensors)
    assert out.loss.item() == 0.0
    out.loss.backward()
    for leaf in (x, W):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("name", NAMES)
def test_mask_is_ignore_index(name):
    loss, tensors = cases()[name]
    x, W, target = head()
    known = target.where(target != -100, 0)
    right = loss(x, W, target, **tensors)
    for dtype in (torch.bool, torch.int64, torch.float32):
        out = loss(x, W, known, mask=(target != -100).to(dtype), **tensors)
        assert torch.equal(out.loss, right.loss)


@pytest.mark.parametrize("name", NAMES)
def test_scalars_without_gradient(name):
    loss, tensors = cases()[name]
    out = loss(*head(), **tensors)
    assert out.loss.shape == ()
    assert out.metrics
    assert all(m.shape == () and not m.requires_grad for m in out.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_head(name):
    loss, tensors = cases()[name]
    x, W, target = head()
    (right,) = torch.autograd.grad(loss(x, W, target, **tensors).loss, x)
    out = loss(x, W.detach(), target, **tensors)
    torch.testing.assert_close(torch.autograd.grad(out.loss, x)[0], right)


@pytest.mark.parametrize("name", NAMES)
def test_compiled(name):
    loss, tensors = cases()[name]
    x, W, target = head()

    def step(x, W, target):
        return loss(x, W, target, **tensors).loss

    torch._dynamo.reset()
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(x, W, target)
    right = step(x, W, target)
    torch.testing.assert_close(found, right)
    for a, b in zip(*(torch.autograd.grad(t, (x, W)) for t in (found, right)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def products(monkeypatch):
    """Matrix products of forward and backward, in units of one [tokens that count, H, V]."""
    done = []

    def counted(function):
        def product(*args, out=None, **options):
            done.append(args[-2].shape[0] * args[-2].shape[1] * args[-1].shape[1])
            return function(*args, out=out, **options)

        return product

    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, counted(getattr(torch, name)))

    def count(loss, x, W, target, **tensors):
        done.clear()
        loss(x, W, target, **tensors).loss.backward()
        return sum(done) / ((target != -100).sum().item() * H * V)

    return count


@pytest.mark.parametrize(
    ("name", "count"),
    [("grpo", 3.5), ("gspo", 3), ("dpo", 3.5), ("simpo", 3), ("kto", 3.5), ("distillation", 6.5)],
)
def test_products(products, name, count):
    """Three of the tokens that count, and one of the reference's hidden states, half as wide."""
    loss, tensors = cases()[name]
    assert products(loss, *head(), **tensors) == count


def test_products_of_what_exceeds_a_chunk(products):
    x, W, target = head(2, 300)
    target[:, :50] = -100
    row, advantages = V * 4, new(7).normal(2)
    # a token needs no other, whatever the length; a sequence makes its logits again
    token = LinearGRPOLoss(chunk_bytes=row * 128)
    assert products(token, x, W, target, advantages=advantages) == 3
    sequence = LinearGRPOLoss(loss_type="gspo", chunk_bytes=row * 128)
    assert products(sequence, x, W, target, advantages=advantages) == 4


def test_temperature_and_softcap():
    """softcap * tanh(scale * z / softcap) / temperature"""
    x, W, target = head()
    z = 3.0 * torch.tanh(0.7 * (x @ W.t()) / 3.0) / 1.5
    lp = z.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    counts = target != -100
    advantages = new(7).normal(B)
    right = -(lp * advantages[:, None] * counts).sum() / counts.sum()
    loss = LinearGRPOLoss(loss_type="reinforce", temperature=1.5, softcap=3.0, logit_scale=0.7)
    torch.testing.assert_close(loss(x, W, target, advantages=advantages).loss, right)


def test_reference_head_or_log_probs():
    x, W, target = head()
    given = reference()
    ref = linear_log_probs(given["ref_input"], given["ref_weight"], target).log_probs
    loss = LinearDPOLoss()
    right = loss(x, W, target, **given).loss
    assert torch.equal(loss(x, W, target, ref_log_probs=ref).loss, right)
    torch.testing.assert_close(loss(x, W, target, ref_log_probs=ref.sum(-1)).loss, right)


def test_one_call():
    x, W, target = head()
    ref = new(8).normal(B)
    out = linear_dpo_loss(x, W, target, beta=0.3, loss_type="hinge", ref_log_probs=ref)
    right = LinearDPOLoss(beta=0.3, loss_type="hinge")(x, W, target, ref_log_probs=ref)
    assert torch.equal(out.loss, right.loss)
    assert linear_dpo_loss.__name__ == "linear_dpo_loss"


@pytest.mark.parametrize("reduction", ["grpo", "luspo", "bnpo", "dapo", "dr_grpo"])
def test_normalizer_makes_batches_add_up(reduction):
    """Two ranks or accumulated batches that divide by the whole give the whole."""
    x, W, target = head()
    target[0, 3:] = -100
    advantages = new(7).normal(B)
    counts = target != -100
    by = {"grpo": B, "luspo": B, "dr_grpo": B * T}.get(reduction, counts.sum())

    def loss(rows, normalizer=None):
        return linear_grpo_loss(
            x[rows], W, target[rows], advantages=advantages[rows], normalizer=normalizer,
            reduction=reduction, loss_type="grpo",
        ).loss  # fmt: skip

    parts = loss(slice(0, 1), by) + loss(slice(1, None), by)
    torch.testing.assert_close(parts, loss(slice(None)))


def test_no_statistic_unasked(monkeypatch):
    import liger_posttrain.linear as linear

    asked = []
    original = linear.linear_loss

    def record(*args, statistics, **options):
        asked.append(statistics)
        return original(*args, statistics=statistics, **options)

    monkeypatch.setattr(linear, "linear_loss", record)
    for name in ("grpo", "dpo", "kto", "orpo"):
        loss, tensors = cases()[name]
        loss(*head(), **tensors)
    linear_grpo_loss(*head(), advantages=new(7).normal(B), entropy_coef=0.1)
    assert asked == [(), (), (), (), ("entropy",)]


def check(error, message, function, *args, **options):
    with pytest.raises(error, match=message):
        function(*args, **options)


def test_bad_input():
    x, W, target = head()
    advantages, grpo, dpo = new(7).normal(B), LinearGRPOLoss(), LinearDPOLoss(reference_free=True)
    check(ValueError, "even number of rows", dpo, x[:3], W, target[:3])
    check(ValueError, r"mask \(4, 5\) .* must be \(4, 6\)", dpo, x, W, target, mask=target[:, 1:])
    check(ValueError, r"advantages \(3,\)", grpo, x, W, target, advantages=advantages[:3])
    check(ValueError, r"must be \[B, T, H\]", grpo, x[0], W, target[0], advantages=advantages)
    wide = {"advantages": advantages, "old_log_probs": advantages}
    check(ValueError, r"old_log_probs \(4,\)", grpo, x, W, target, **wide)
    check(TypeError, "weight tensor of the head, not Linear", dpo, x, torch.nn.Linear(H, V), target)
    check(ValueError, "must be one of grpo, bnpo", LinearGRPOLoss, loss_type="ppo")
    check(ValueError, "must be one of sigmoid, hinge", LinearDPOLoss, loss_type="dpo")
    check(ValueError, "must be one of kto", LinearKTOLoss, loss_type="dpo")
    check(ValueError, "must be one of forward_kl", LinearDistillationLoss, loss_type="kl")
    check(TypeError, "takes delta, epsilon_high, epsilon_low; not 'tau'", LinearGRPOLoss, tau=1.0)
    hinge = {"loss_type": "hinge", "label_smoothing": 0.1}
    check(TypeError, "'hinge' takes no options", LinearDPOLoss, **hinge)
    check(ValueError, "one for each of", LinearDPOLoss, loss_weights=[1.0, 2.0])
    divergent = {"loss_type": "apo_zero", "f_divergence_type": "forward_kl"}
    check(ValueError, "not defined for f_divergence", LinearDPOLoss, **divergent)
    check(ValueError, "probabilities, not ratios", LinearDPOLoss, loss_type="orpo")
    check(ValueError, "temperature must be positive", LinearDPOLoss, temperature=0.0)


def test_bad_references():
    x, W, target = head()
    given, ref = reference(), new(8).normal(B)
    check(ValueError, "give ref_log_probs, or", LinearDPOLoss(), x, W, target)
    check(
        ValueError,
        "give ref_log_probs, or",
        LinearDPOLoss(),
        x,
        W,
        target,
        ref_log_probs=ref,
        **given,
    )
    check(
        ValueError, "no reference in this loss", LinearSimPOLoss(), x, W, target, ref_log_probs=ref
    )
    check(
        ValueError, "give ref_log_probs, or", LinearGRPOLoss(beta=0.1), x, W, target, advantages=ref
    )
    desirable = torch.ones(B, dtype=torch.bool, device=device())
    kto = LinearKTOLoss(reference_free=True)
    check(ValueError, "needs baseline", kto, x, W, target, desirable=desirable)
    check(ValueError, "must be bool", kto, x, W, target, desirable=ref, baseline=0.0)
    check(ValueError, "takes ref_input and ref_weight", LinearDistillationLoss(), x, W, target)
