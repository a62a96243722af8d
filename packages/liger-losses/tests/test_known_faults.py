"""Faults that such losses have had, each with the test that would find it; those of more than one
place are here.

    gradient of strided logits                     suite: layouts
    frozen hidden states, trainable head           test_no_product_too_many, test_frozen_parts; here
    labels out of range                            test_label_out_of_range; here
    whole tiles of -inf                            test_masked_classes; here
    a scaled loss, backward twice                  suite: second_backward
    logits used after the loss, checkpoints        test_logits_may_be_used_again
    writes in evaluation, of leaves and views      suite: inputs_unchanged; test_..._inplace
    fp16 gradients of a mean over many tokens      test_fp16_with_loss_scaling; here
    fp64 in the accuracy of fp32                   suite: float64
    losses in bf16                                 test_loss_is_fp32; suite: values
    no rows, no rows that count                    suite: shapes; test_nothing_counts; here
    create_graph, functional transforms            here
    offsets beyond 2^31                            suite: large_offsets
    gradient of TVD at equal probabilities         test_tvd_gradient_is_zero_where_...
    digits of the true class's gradient            test_digits_of_the_label_gradient
"""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import (
    cross_entropy,
    jsd,
    kl_div,
    linear_cosine,
    linear_cross_entropy,
    linear_jsd,
    linear_kl_div,
    linear_log_probs,
    linear_loss,
    linear_tvd,
    log_probs,
    tvd,
)

INF = float("inf")


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def nll(stats):
    return -stats.log_probs, ()


def of_log_probs(x, target, reduction="none"):
    losses = -log_probs(x, target).log_probs
    return losses if reduction == "none" else losses.sum()


# losses of logits and labels
OF_LOGITS = {
    "cross_entropy": cross_entropy,
    "inplace": lambda x, target, reduction="none": cross_entropy(
        x * 1, target, inplace=True, reduction="sum"
    ),
    "log_probs": of_log_probs,
}
each_of_logits = pytest.mark.parametrize("op", OF_LOGITS.values(), ids=OF_LOGITS)


@each_of_logits
@pytest.mark.parametrize("label", [-1, -7, 50, 57, 2**31])
def test_label_out_of_range_stays_in_its_row(op, label):
    """The logits are part of a larger buffer whose other rows and columns are NaN."""
    buffer = torch.full((6, 70), float("nan"), device=device())
    buffer[1:5, :50] = new().normal(4, 50)
    before, x = buffer.clone(), buffer[1:5, :50].detach().requires_grad_()
    target = torch.tensor([3, label, 4, 5], device=device())
    (grad,) = torch.autograd.grad(op(x, target, reduction="none").sum(), x)
    assert same_bits(buffer, before)
    assert grad[1].isnan().all()
    assert grad[[0, 2, 3]].isfinite().all()


def test_logits_handed_over_are_written_in_their_rows_alone():
    """Labels out of range, of logits that are rows of a larger buffer and become their gradient."""
    buffer = new().normal(6, 50).requires_grad_() * 1
    before = buffer.detach().clone()
    target = torch.tensor([3, -1, 50, 5], device=device())
    part = buffer[1:5]
    cross_entropy(part, target, inplace=True, reduction="sum").backward(inputs=[part])
    assert same_bits(buffer.detach()[[0, 5]], before[[0, 5]])
    assert part.detach().isnan().all(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("op", ["linear_log_probs", "linear_loss"])
@pytest.mark.parametrize("label", [-1, 30])
def test_label_out_of_range_under_a_head(op, label):
    x, W = new().normal(5, 8).requires_grad_(), new(seed=1).normal(30, 8)
    target = torch.tensor([1, 2, label, 3, -100], device=device())
    if op == "linear_loss":
        loss = linear_loss(nll, x, W, target)[0]
        assert loss.isnan()
    else:
        loss = linear_log_probs(x, W, target).log_probs
        assert loss.isnan().tolist() == [False, False, True, False, False]
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert grad.isnan().all(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("op", [*OF_LOGITS, "kl_div", "reverse kl_div", "jsd", "tvd"])
def test_first_32768_classes_masked(op):
    """The maximum of all that a program has read so far is -inf, over many tiles."""
    V, masked = 33_000, 32_800
    x, y = new().normal(2, V), new(seed=1).normal(2, V)
    for t in (x, y):
        t[:, :masked] = -INF
    target = torch.tensor([32_900, V - 1], device=device())
    divergences = {
        "kl_div": partial(kl_div, reduction="sum"),
        "reverse kl_div": partial(kl_div, reduction="sum", direction="reverse"),
        "jsd": partial(jsd, reduction="sum"),
        "tvd": partial(tvd, reduction="sum"),
    }

    def run(part):
        z = x[:, part].clone().requires_grad_()
        if op in divergences:
            loss = divergences[op](z, y[:, part], from_logits=True)
        else:
            loss = OF_LOGITS[op](z, target - (part.start or 0), reduction="sum")
        return loss.detach(), torch.autograd.grad(loss, z)[0]

    loss, grad = run(slice(0, V))
    right, d = run(slice(masked, V))
    torch.testing.assert_close(loss, right, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad[:, masked:], d, rtol=1e-5, atol=1e-7)
    assert not grad[:, :masked].any()


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
def test_frozen_parts_of_linear_loss(wanted):
    """Each part gets its gradient by its own flag; with a frozen head and hidden states, None."""
    tensors = new().normal(7, 8), new(seed=1).normal(30, 8), new(seed=2).normal(30)
    target = new(seed=3).integers(30, 7)
    leaves = [t.clone().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    loss, _ = linear_loss(nll, *leaves[:2], target, linear_bias=leaves[2], chunk_bytes=3 * 30 * 4)
    exact = [t.double().requires_grad_() for t in tensors]
    F.cross_entropy(F.linear(*exact), target, reduction="sum").backward()
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for leaf, right, w in zip(leaves, exact, wanted, strict=True):
        if w:
            torch.testing.assert_close(leaf.grad.double(), right.grad, rtol=1e-5, atol=1e-5)
        else:
            assert leaf.grad is None


def heads(M, dtype=torch.float32, H=8, V=40):
    """Hidden states and weight of a student, then of a teacher."""
    return [
        t
        for i in (0, 2)
        for t in (new(dtype, i).normal(M, H), new(dtype, i + 1).normal(V, H, std=H**-0.5))
    ]


def listed(M, k=4, V=40):
    log_p, ids = new(seed=7).normal(M, V).log_softmax(-1).topk(k)
    return {"target_log_probs": log_p, "target_ids": ids}


# losses with a normalizer, of hidden states and weight of a student and of a teacher
BY_TEACHER = {
    "linear_kl_div": linear_kl_div,
    "linear_jsd": linear_jsd,
    "linear_tvd": linear_tvd,
    "linear_cosine": linear_cosine,
    "top-k": lambda x, W, tx, tW, **o: linear_kl_div(x, W, **listed(len(x)), **o),
    "kl_div": lambda x, W, tx, tW, **o: kl_div(x @ W.t(), tx @ tW.t(), from_logits=True, **o),
    "jsd": lambda x, W, tx, tW, **o: jsd(x @ W.t(), tx @ tW.t(), from_logits=True, **o),
    "tvd": lambda x, W, tx, tW, **o: tvd(x @ W.t(), tx @ tW.t(), from_logits=True, **o),
}


@pytest.mark.parametrize("op", BY_TEACHER)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("M", [0, 5])
def test_nothing_counts_by_a_teacher(op, reduction, M):
    """0 and gradients of zeros, as of every loss of labels."""
    x, W, *teacher = heads(M)
    labels = torch.full((M,), -100, device=device())
    x, W = x.requires_grad_(), W.requires_grad_()
    loss = BY_TEACHER[op](x, W, *teacher, labels=labels, reduction=reduction)
    assert loss == 0
    for grad in torch.autograd.grad(loss, (x, W)):
        assert not grad.any()


def of_labels(op, **fixed):
    return lambda x, W, tx, tW, **o: op(x, W, labels_of(x), **fixed, **o)


def of_logits(x, W, target, **options):
    return cross_entropy(x @ W.t(), target, **options)


def labels_of(x):
    return new(seed=5).integers(40, len(x))


MEANS = {
    **BY_TEACHER,
    "cross_entropy": of_labels(of_logits),
    "inplace": of_labels(of_logits, inplace=True),
    "linear_cross_entropy": of_labels(linear_cross_entropy),
    "probability": of_labels(linear_cross_entropy, token_weight="probability"),
}


@pytest.mark.parametrize("op", MEANS)
def test_fp16_mean_over_33_million_tokens(op):
    """With the loss scaled as much, gradients have the digits of fp16: none was formed unscaled."""
    count = 2.0**25
    if "linear" in op or op in ("top-k", "probability"):
        x, W, *teacher = heads(6, torch.float16)
    else:
        # a weight of ones: torch's own products see what the loss hands out
        x, W, *teacher = heads(6, torch.float16, H=40)
        W = torch.eye(40, dtype=torch.float16, device=device())
    leaves = x.requires_grad_(), W.requires_grad_()
    (dx, dW) = torch.autograd.grad(MEANS[op](*leaves, *teacher, normalizer=count) * count, leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    teacher = [t.double() for t in teacher]
    right = torch.autograd.grad(MEANS[op](*exact, *teacher, normalizer=1.0), exact)
    for ours, truth in zip((dx, dW), right, strict=True):
        assert (ours.double() - truth).abs().max() <= 3e-3 * truth.abs().max()


EVERY = {
    **MEANS,
    "linear_cross_entropy per token": of_labels(linear_cross_entropy, reduction="none"),
    "linear_log_probs": lambda x, W, tx, tW: linear_log_probs(x, W, labels_of(x)).log_probs,
    "linear_loss": lambda x, W, tx, tW: linear_loss(nll, x, W, labels_of(x))[0],
    "log_probs": lambda x, W, tx, tW: log_probs(x @ W.t(), labels_of(x)).log_probs,
    "kl_div rows": partial(BY_TEACHER["kl_div"], reduction="row"),
}


@pytest.mark.parametrize("op", EVERY)
def test_create_graph_raises_where_the_gradient_is_differentiated(op):
    """Also for a loss itself, whose incoming gradient is no part of a graph: a penalty on the
    gradient may not silently go missing.
    """
    x, W, *teacher = heads(5)
    x, W = x.requires_grad_(), W.requires_grad_()
    loss = EVERY[op](x, W, *teacher).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad.square().sum() + loss).backward()


@pytest.mark.parametrize("op", EVERY)
def test_functional_transforms_are_refused(op):
    """torch.func.grad and vmap: an error, and no gradient that is silently left out."""
    x, W, *teacher = heads(5)
    x = x.requires_grad_()

    def loss(x):
        return EVERY[op](x, W, *teacher).sum()

    with pytest.raises(RuntimeError):
        torch.func.grad(loss)(x)
    with pytest.raises(RuntimeError):
        torch.vmap(loss)(x[None])
