"""Relations that hold for any loss of labels under a linear head, however it is cut into chunks and
tiles: orders of tokens and classes, constants, classes that cannot be, ignored tokens, batches.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder, load_module
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import cross_entropy, linear_cross_entropy, linear_log_probs, linear_loss

oracle = load_module(Path(__file__).with_name("oracle.py"))
M, H, V = 11, 8, 70


def new(seed=0):
    return Builder(torch.float32, device(), seed)


def nll(stats):
    return -stats.log_probs, ()


def of_log_probs(x, W, target, **options):
    return -linear_log_probs(x, W, target, **options).log_probs.sum()


OPS = {
    "linear_cross_entropy": partial(linear_cross_entropy, reduction="sum"),
    "per token": lambda *a, **o: linear_cross_entropy(*a, reduction="none", **o).sum(),
    "linear_log_probs": of_log_probs,
    "linear_loss": lambda *a, **o: linear_loss(nll, *a, **o)[0],
}
each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def case():
    target = new(3).integers(V, M)
    target[1::3] = -100
    return [new().normal(M, H), new(1).normal(V, H, std=H**-0.5), new(2).normal(V)], target


def run(op, tensors, target, rows=4, **options):
    """The sum of the losses, and the gradients of x, W and b, by chunks of some rows."""
    x, W, b = leaves = [t.detach().clone().requires_grad_() for t in tensors]
    loss = op(x, W, target, linear_bias=b, chunk_bytes=rows * W.shape[0] * 4, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def close(ours, right):
    for one, other in zip(ours, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@each_op
def test_orders_of_tokens_and_classes(op):
    (x, W, b), target = case()
    loss, dx, dW, db = run(op, (x, W, b), target)
    rows, classes = torch.randperm(M).to(device()), torch.randperm(V).to(device())
    moved = torch.where(target == -100, -100, classes.argsort()[target.clamp(min=0)])[rows]
    found = run(op, (x[rows], W[classes], b[classes]), moved)
    close(found, (loss, dx[rows], dW[classes], db[classes]))


@each_op
def test_constants_and_classes_that_cannot_be(op):
    """A constant in the bias, and classes of bias -inf, more than a tile of them."""
    (x, W, b), target = case()
    plain = run(op, (x, W, b), target)
    close(run(op, (x, W, b + 3.0), target), plain)
    more = 300
    wider = F.pad(W, (0, 0, 0, more), value=0.5), F.pad(b, (0, more), value=-float("inf"))
    loss, dx, dW, db = run(op, (x, *wider), target)
    close((loss, dx, dW[:V], db[:V]), plain)
    assert not dW[V:].any()
    assert not db[V:].any()


@each_op
def test_ignored_tokens_may_be_dropped(op):
    (x, W, b), target = case()
    keep = target != -100
    x[~keep] = float("nan")
    loss, dx, dW, db = run(op, (x, W, b), target)
    loss_k, dx_k, dW_k, db_k = run(op, (x[keep], W, b), target[keep])
    torch.testing.assert_close(loss, loss_k)
    for one, other in ((dx[keep], dx_k), (dW, dW_k), (db, db_k)):
        assert same_bits(one, other)
    assert not dx[~keep].any()


@each_op
def test_chunks_and_batches_add_up(op):
    tensors, target = case()
    whole = run(op, tensors, target, rows=1000)
    for rows in (1, 2, 3, 7, 8):
        close(run(op, tensors, target, rows), whole)
    (x, W, b), cut = tensors, 5
    parts = [run(op, (x[s], W, b), target[s]) for s in (slice(0, cut), slice(cut, M))]
    dx = torch.cat([part[1] for part in parts])
    sums = [sum(part[i] for part in parts) for i in (0, 2, 3)]
    close((sums[0], dx, *sums[1:]), whole)


# classes: fewer than a tile, a tile, several, and some beyond; tiles have 256 to 8192
@pytest.mark.parametrize("V", [2, 255, 256, 257, 4096, 8192, 12_288, 12_289])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_blocks_of_the_vocabulary(V, reduction):
    """Softcap, z-loss, smoothing and ignored tokens in every tiling, by logits and by a head with
    chunks that do and do not divide the tokens: fp64, loss and gradients, to 1e-5.
    """
    x, W = new().normal(4, 3), new(1).normal(V, 3)
    target = torch.tensor([0, V - 1, -100, V // 2], device=device())
    options = {"softcap": 4.0, "z_loss": 0.0625, "label_smoothing": 0.125}

    def run(function, tensors):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        loss = function(*leaves)
        places = torch.arange(1, loss.numel() + 1).reshape(loss.shape).to(loss)
        return loss.detach(), *torch.autograd.grad((loss * places).sum(), leaves)

    def exact(x, W):
        return oracle.reduced(oracle.row_losses(x @ W.t(), target, **options), reduction)

    def by_logits(x, W):
        return cross_entropy(x @ W.t(), target, reduction=reduction, **options)

    def by_head(rows, x, W):
        chunk = {"chunk_bytes": rows * V * 4}
        return linear_cross_entropy(x, W, target, reduction=reduction, **options, **chunk)

    right = run(exact, (x.double(), W.double()))
    for function in (by_logits, partial(by_head, 2), partial(by_head, 3)):
        for actual, truth in zip(run(function, (x, W)), right, strict=True):
            oracle.close(actual, truth)
