"""Weights of tokens, shifted labels and metrics of cross_entropy and linear_cross_entropy."""

from functools import partial
from pathlib import Path

import pytest
import torch
from liger_core.testing import Builder, load_module
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    cross_entropy,
    cross_entropy_with_metrics,
    linear_cross_entropy,
    linear_cross_entropy_with_metrics,
    linear_log_probs,
)

oracle = load_module(Path(__file__).with_name("oracle.py"))
EXTRAS = load_module(Path(__file__).with_name("specs.py")).EXTRAS
M, H, V = 9, 16, 40
REDUCTIONS = ("none", "sum", "mean")
FIELDS = ("loss", "z_loss", "log_probs", "lse", "argmax", "accuracy", "num_tokens")
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def labels(*shape):
    """Every third does not count."""
    target = new(seed=3).integers(V, *shape)
    target.view(-1)[1::3] = -100
    return target


def of_logits(x, W, target, *, inplace=False, metrics=False, **options):
    function = cross_entropy_with_metrics if metrics else cross_entropy
    return function((x @ W.t()).movedim(-1, min(x.ndim - 1, 1)), target, inplace=inplace, **options)


def of_head(x, W, target, metrics=False, **options):
    function = linear_cross_entropy_with_metrics if metrics else linear_cross_entropy
    return function(x, W, target, chunk_bytes=4 * V * x.element_size(), **options)


OPS = {"logits": of_logits, "inplace": partial(of_logits, inplace=True), "head": of_head}
each_op = pytest.mark.parametrize("op", OPS)


def skip_inplace_none(op, reduction):
    if (op, reduction) == ("inplace", "none"):
        pytest.skip("inplace needs a reduction")


def run(function, target, dtype=torch.float32, scale=1.0, **options):
    """The loss and the gradients of x and W, the same values in each dtype up to rounding."""
    x = new().normal(*target.shape, H).to(dtype).requires_grad_()
    W = new(seed=1).normal(V, H, std=H**-0.5).to(dtype).requires_grad_()
    loss = function(x, W, target, **options)
    grads = torch.autograd.grad(loss.sum() * scale, (x, W))
    return loss.detach(), *grads


def close(ours, right, limit=1e-5):
    for actual, expected in zip(ours, right, strict=True):
        oracle.close(actual, expected.double(), limit)


def formula(x, W, target, weight, *, token_weight=None, reduction="mean", **options):
    """By fp64 rows; `token_weight` a tensor or "probability"."""
    logits = (x @ W.t()).reshape(-1, V)
    loss, counts = oracle.row_losses(logits, target.reshape(-1), weight, **options)
    if isinstance(token_weight, str):
        options = {n: options[n] for n in ("softcap", "logit_scale") if n in options}
        loss = loss * (-oracle.row_losses(logits, target.reshape(-1), **options)[0]).exp().detach()
    elif token_weight is not None:
        loss, counts = loss * token_weight.double(), counts * token_weight.double()
    return oracle.reduced((loss, counts), reduction)


@each_op
@each_reduction
@pytest.mark.parametrize("options", [{}, EXTRAS], ids=["plain", "extras"])
@pytest.mark.parametrize("kind", ["tensor", "probability"])
def test_weights_of_tokens(op, reduction, options, kind):
    """Loss and gradients of loss_i * w_i with class weights, w_i a constant; as fp64."""
    skip_inplace_none(op, reduction)
    target, weight = labels(M), new(seed=2).uniform(V, low=0.5)
    token_weight = new(seed=4).uniform(M, low=0.25, high=2.0) if kind == "tensor" else kind
    options = {"token_weight": token_weight, "reduction": reduction, **options}
    ours = run(partial(OPS[op], weight=weight), target, **options)
    close(ours, run(partial(formula, weight=weight), target, torch.float64, **options))


@each_op
def test_probability_is_a_detached_weight(op):
    """Of dynamic fine-tuning: -sum p_t log p_t with p_t constant, over the number of tokens."""
    target = labels(M)
    x, W = new().normal(M, H), new(seed=1).normal(V, H, std=H**-0.5)
    p = linear_log_probs(x, W, target).log_probs.exp()
    given = run(OPS[op], target, token_weight=p, normalizer=(target != -100).sum())
    close(run(OPS[op], target, token_weight="probability"), given)


@each_op
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_weights_in_fp16_under_loss_scaling(op, scale):
    """Gradients of a mean do not underflow before they are scaled, whatever the weights."""
    target = labels(M)
    token_weight = torch.full((M,), 2.0**-12, device=device())
    options = {"token_weight": token_weight, "normalizer": 1.0}
    _, dx, dW = run(OPS[op], target, torch.float16, scale, **options)
    x, W = new(torch.float16).normal(M, H), new(torch.float16, 1).normal(V, H, std=H**-0.5)
    x, W = (t.double().requires_grad_() for t in (x, W))
    loss = formula(x, W, target, None, token_weight=token_weight, reduction="sum")
    right = torch.autograd.grad(loss * scale, (x, W))
    # fp16 ends at 6e-8, to which the gradients of scale 1 come close
    close((dx, dW), right, 4e-3 if scale > 1 else 0.1)


@each_op
def test_batches_of_one_normalizer_add_up(op):
    """num_items_in_batch: losses and gradients of parts are those of the whole; also a tensor."""
    target = labels(M)
    count = int((target != -100).sum())
    whole = run(OPS[op], target)
    for normalizer in (float(count), torch.tensor(count, device=device())):
        close(run(OPS[op], target, normalizer=normalizer), whole)
    first, second = target.clone(), target.clone()
    first[5:], second[:5] = -100, -100
    parts = [run(OPS[op], part, normalizer=count) for part in (first, second)]
    for one, other, total in zip(*parts, whole, strict=True):
        torch.testing.assert_close(one + other, total, rtol=1e-5, atol=1e-7)


def following(target, fill):
    return torch.cat((target[..., 1:], torch.full_like(target[..., :1], fill)), dim=-1)


@each_op
@each_reduction
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 1), (2, 0)], ids=str)
def test_shifted_labels(op, reduction, shape):
    """Position t predicts label t + 1, with the weight of that label; the last one nothing."""
    skip_inplace_none(op, reduction)
    target = labels(*shape)
    weight = new(seed=4).uniform(*shape, low=0.25, high=2.0)
    ours = run(OPS[op], target, token_weight=weight, reduction=reduction, shift_labels=True)
    moved = following(target, -100), following(weight, 0.0)
    right = run(OPS[op], moved[0], token_weight=moved[1], reduction=reduction)
    for one, other in zip(ours, right, strict=True):
        assert same_bits(one, other)
    if shape[-1]:
        assert not ours[1][..., -1, :].any()
    if reduction == "none":
        assert ours[0].shape == shape


def test_shifting_copies_no_logits():
    """[B, T, V] passed as its transpose is read where it lies; so is the gradient written."""
    logits = new().normal(2, 6, V)
    target = labels(2, 6)
    z = logits.clone().requires_grad_() * 1
    loss = cross_entropy(z.transpose(1, 2), target, shift_labels=True, inplace=True)
    assert not same_bits(z.detach(), logits)
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.data_ptr() == z.data_ptr()


@pytest.mark.parametrize("op", ["logits", "head"])
@pytest.mark.parametrize("options", [{}, {"token_weight": "probability", **EXTRAS}], ids=str)
@each_reduction
def test_metrics(op, reduction, options):
    """Beside the very loss: statistics in the shape of the target, without gradients."""
    target = labels(3, 4)
    options = {"reduction": reduction, "shift_labels": True, "ignore_index": -100, **options}
    plain = run(OPS[op], target, **options)
    x, W = new().normal(3, 4, H).requires_grad_(), new(seed=1).normal(V, H, std=H**-0.5)
    found = OPS[op](x, W.requires_grad_(), target, metrics=True, **options)
    assert found._fields == FIELDS
    assert same_bits(found.loss.detach(), plain[0])
    for one, other in zip(torch.autograd.grad(found.loss.sum(), (x, W)), plain[1:], strict=True):
        assert same_bits(one, other)
    assert not any(t.requires_grad for t in found[1:])

    scaling = {n: options[n] for n in ("softcap", "logit_scale") if n in options}
    moved = following(target, -100)
    stats = linear_log_probs(x, W, moved, statistics=("argmax",), **scaling)
    for name in ("log_probs", "lse", "argmax"):
        assert getattr(found, name).shape == target.shape
        torch.testing.assert_close(
            getattr(found, name), getattr(stats, name).detach(), rtol=1e-5, atol=1e-5
        )
    counts = moved != -100
    assert found.num_tokens == counts.sum()
    right = (stats.argmax == moved)[counts].double().mean()
    torch.testing.assert_close(found.accuracy.double(), right)
    without = OPS[op](x, W, target, **{**options, "z_loss": 0.0})
    torch.testing.assert_close(found.z_loss, (found.loss - without).detach(), rtol=1e-4, atol=1e-5)


@each_op
@pytest.mark.parametrize("M", [0, 5])
def test_metrics_where_nothing_counts(op, M):
    target = torch.full((M,), -100, device=device())
    found = OPS[op](new().normal(M, H).requires_grad_(), new().normal(V, H), target, metrics=True)
    for name in ("loss", "z_loss", "accuracy", "num_tokens"):
        assert getattr(found, name) == 0
    assert (found.argmax == -1).all()
    assert not found.log_probs.any()
    assert not found.lse.any()


def test_accuracy_of_equal_logits():
    """The first of the largest is the prediction, wherever the label and the tiles lie."""
    logits = torch.zeros(4, 5000, device=device())
    logits[2, [4500, 4900]] = 1.0
    logits[3] = -float("inf")
    logits[3, 17] = -5.0
    target = torch.tensor([0, 1, 4900, 17], device=device())
    found = cross_entropy_with_metrics(logits, target)
    assert found.argmax.tolist() == [0, 0, 4500, 17]
    assert found.accuracy == 0.5


def test_metrics_of_logits_handed_over():
    target = labels(M)
    x, W = new().normal(M, H).requires_grad_(), new(seed=1).normal(V, H)
    plain = of_logits(x, W, target, metrics=True)
    found = of_logits(x, W, target, metrics=True, inplace=True)
    for name, one, other in zip(FIELDS, plain, found, strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert not any(t.requires_grad for t in found[1:])


def test_modules_take_weights_and_shift():
    target, weight = labels(2, 5), new(seed=4).uniform(2, 5)
    x = new().normal(2, 5, H)
    head = LinearCrossEntropyLoss(H, V, shift_labels=True, device=device())
    options = {"shift_labels": True, "token_weight": weight, "normalizer": 3.0}
    expected = linear_cross_entropy(x, head.linear.weight, target, **options)
    found = head(x, target, normalizer=3.0, token_weight=weight)
    assert same_bits(found.detach(), expected.detach())
    logits = (x @ head.linear.weight.t()).detach().transpose(1, 2)
    loss = CrossEntropyLoss(shift_labels=True)
    found = loss(logits, target, token_weight=weight, normalizer=3.0)
    assert same_bits(found, cross_entropy(logits, target, **options))
    assert "shift_labels=True" in repr(loss)
    assert "shift_labels=True" in repr(head)
