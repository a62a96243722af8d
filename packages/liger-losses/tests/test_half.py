"""fp16 gradients under loss scaling, where tokens have weights or a mean is over many more of them:
as good as those that nothing has formed before the scale is known.
"""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.running import device
from liger_losses import cross_entropy, linear_cross_entropy, linear_loss

M, H, V = 96, 16, 6000
SCALE = 65536.0
# tokens of all ranks and batches
MANY = 2.0**23
# of fp16 sums, with room
BOUND = 2e-3


def inputs(dtype=torch.float16):
    x = Builder(torch.float16, device()).normal(M, H)
    W = Builder(torch.float16, device(), 1).normal(V, H, std=0.2)
    return x.to(dtype).requires_grad_(), W.to(dtype).requires_grad_()


def check(loss):
    """Gradients of loss(x, W) in fp16 beside fp64."""
    half, exact = inputs(), inputs(torch.float64)
    found = torch.autograd.grad(loss(*half) * SCALE, half)
    for a, b in zip(found, torch.autograd.grad(loss(*exact) * SCALE, exact), strict=True):
        assert (a.double() - b).norm() < BOUND * b.norm()


def in_place(x, W, *args, **options):
    return cross_entropy(x @ W.t(), *args, inplace=True, **options)


@pytest.mark.parametrize("op", [linear_cross_entropy, in_place])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_token_weights(op, reduction):
    target = Builder(torch.float32, device(), 2).integers(V, M)
    weight = Builder(torch.float32, device(), 3).uniform(M, low=0.5)
    weight[:2] = 0.0
    check(lambda x, W: op(x, W, target, token_weight=weight / MANY, reduction=reduction))


@pytest.mark.parametrize("op", [linear_cross_entropy, in_place])
def test_probability_as_weight(op):
    target = Builder(torch.float32, device(), 2).integers(V, M)
    check(lambda x, W: op(x, W, target, token_weight="probability"))


@pytest.mark.parametrize("chunk_bytes", [None, 32 * V * 2])
def test_losses_of_a_mean_over_more_than_is_here(chunk_bytes):
    target = Builder(torch.float32, device(), 2).integers(V, M)
    # later chunks have the larger gradients, the first none
    growing = torch.linspace(0.0, 1.0, M, device=device()).square() * (target >= 0)
    growing[:32] = 0.0

    def loss(x, W):
        return linear_loss(
            lambda stats, g: (-stats.log_probs * g / MANY, ()), x, W, target, growing,
            chunk_bytes=chunk_bytes,
        )[0]  # fmt: skip

    check(loss)


def test_function_that_is_singular_where_nothing_counts():
    target = Builder(torch.float32, device(), 2).integers(V, M)
    target[3] = -100

    def loss(x, W):
        return linear_loss(lambda stats: ((-stats.log_probs).sqrt(), ()), x, W, target)[0]

    x, W = inputs()
    for grad in torch.autograd.grad(loss(x, W), (x, W)):
        assert grad.isfinite().all()
