"""cross_entropy beyond the generic suite: hard rows, relations, digits."""

from pathlib import Path

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.testing import Builder, load_module
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import cross_entropy

oracle = load_module(Path(__file__).with_name("oracle.py"))
EXTRAS = load_module(Path(__file__).with_name("specs.py")).EXTRAS

KERNELS = use_kernels(torch.empty(0, device=device()))
REDUCTIONS = ("none", "sum", "mean")
INF = float("inf")
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
inplace_too = pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def case(M, V, dtype=torch.float32, std=2.0):
    return new(dtype).normal(M, V, std=std), new(seed=1).integers(V, M)


def backward(logits, target, weight=None, scale=1.0, **options):
    """The loss, and the gradient of its sum times `scale`."""
    leaf = logits.detach().clone().requires_grad_()
    # inplace takes no leaf
    loss = cross_entropy(leaf * 1 if options.get("inplace") else leaf, target, weight, **options)
    (grad,) = torch.autograd.grad(loss.sum() * scale, leaf)
    return loss.detach(), grad


def truth(logits, target, weight=None, reduction="mean", **options):
    """Loss and gradient in fp64."""
    leaf = logits.detach().double().requires_grad_()
    loss = oracle.reduced(oracle.row_losses(leaf, target, weight, **options), reduction)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad


@each_reduction
@pytest.mark.parametrize("options", [{}, EXTRAS], ids=["plain", "extras"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_formula(reduction, options, weighted):
    logits, target = case(7, 130)
    target[::3] = -7
    weight = new(seed=2).uniform(130, low=0.5, high=2.0) if weighted else None
    options = {"reduction": reduction, "ignore_index": -7, **options}
    for actual, right in zip(
        backward(logits, target.int(), weight, **options),
        truth(logits, target, weight, **options),
        strict=True,
    ):
        oracle.close(actual, right)


@inplace_too
@pytest.mark.parametrize("masked", ["first", "middle", "last", "others"])
def test_masked_classes(masked, inplace):
    """-inf fills whole tiles of a row, and all classes but the label's; gradients there are 0."""
    V, target = 12_300, torch.tensor([12_200, 3, 8200], device=device())
    logits = new().normal(3, V)
    live = torch.ones(3, V, dtype=torch.bool, device=device())
    parts = {"first": slice(0, 8192), "middle": slice(4096, 8192), "last": slice(8192, V)}
    live[:, parts.get(masked, slice(0, V))] = False
    live[torch.arange(3), target] = True
    logits[~live] = -INF
    loss, grad = backward(logits, target, inplace=inplace)
    right, d = truth(logits, target)
    oracle.close(loss, right)
    if masked == "others":
        assert not grad.any()
    else:
        oracle.close(grad, d)
        assert not grad[~live].any()


def test_rows_without_a_finite_answer():
    """As in torch: a masked label costs infinity, a row of -inf is NaN; others are as ever."""
    logits, target = case(5, 70)
    plain = backward(logits, target, reduction="sum")[1]
    logits[1, target[1]], logits[3] = -INF, -INF
    loss, grad = backward(logits, target, reduction="none")
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert loss[1] == INF
    assert loss[3].isnan()
    torch.testing.assert_close(loss, expected, equal_nan=True)
    assert same_bits(grad[::2], plain[::2])
    assert grad[1].isfinite().all()
    assert grad[3].isnan().any()
    logits[1, 5] = float("nan")
    loss, grad = backward(logits, target, reduction="none")
    assert loss[1].isnan()
    assert same_bits(grad[::2], plain[::2])


@pytest.mark.parametrize("label", [-1, -101, 50, 51, 4096, 2**31, 2**62, -(2**63)])
def test_label_out_of_range(label):
    """NaN in its row; other rows keep their bits. The interpreter sees any access beyond."""
    logits, target = case(4, 50)
    weight = new(seed=2).uniform(50, low=0.5) if label % 2 else None
    good = torch.arange(4, device=device()) != 2
    loss, grad = backward(logits, target, weight, reduction="none")
    target[2] = label
    loss_bad, grad_bad = backward(logits, target, weight, reduction="none", **EXTRAS)
    assert loss_bad[2].isnan()
    assert grad_bad[2].isnan().all()
    loss_bad, grad_bad = backward(logits, target, weight, reduction="none")
    assert same_bits(loss[good], loss_bad[good])
    assert same_bits(grad[good], grad_bad[good])
    assert loss_bad[2].isnan()
    for inplace in (False, True):
        loss_mean, grad_mean = backward(logits, target, weight, inplace=inplace)
        assert loss_mean.isnan()
        assert grad_mean[good].isfinite().all()


@each_reduction
@inplace_too
@pytest.mark.parametrize("M", [0, 4])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_nothing_counts(reduction, inplace, M, weighted):
    """No row, or ignored ones with NaN logits: 0 and a gradient of zeros."""
    if inplace and reduction == "none":
        pytest.skip("inplace needs a reduction")
    logits = torch.full((M, 40), float("nan"), device=device())
    target = torch.full((M,), -100, device=device())
    weight = torch.ones(40, device=device()) if weighted else None
    options = {"reduction": reduction, "inplace": inplace}
    loss, grad = backward(logits, target, weight, **options, **EXTRAS)
    assert loss.dtype == torch.float32
    assert loss.shape == ((M,) if reduction == "none" else ())
    assert not loss.any()
    assert grad.shape == (M, 40)
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@inplace_too
def test_loss_is_fp32(dtype, inplace):
    logits, target = case(6, 300, dtype)
    loss, grad = backward(logits, target, inplace=inplace)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    oracle.close(loss, truth(logits, target)[0], 1e-6)


@pytest.mark.parametrize("around", [0.0, 50.0, -50.0])
@pytest.mark.parametrize("label_logit", [0.0, 6.0, 14.0, 22.5, 24.5])
def test_digits_of_the_label_gradient(label_logit, around):
    """p - 1 to 1e-6 for p up to 1 - 1e-9, where the difference itself has no digit left."""
    logits, target = new().normal(24, 33), new(seed=1).integers(33, 24)
    rows = torch.arange(24)
    logits[rows, target] = label_logit
    logits += around
    _, grad = backward(logits, target, reduction="sum")
    z = logits.double()
    own = z[rows, target]
    z[rows, target] = -INF
    rest = torch.sigmoid(z.logsumexp(-1) - own)
    error = ((-grad[rows, target].double() - rest) / rest).abs().max()
    # in a kernel without fused multiply-add a logit of 50, times log2(e), is rounded by 4e-6
    assert error <= (4e-6 if KERNELS and around else 1e-6)


@each_reduction
def test_constant_permutation_and_more_classes(reduction):
    """So does an order of rows or classes; classes of -inf add nothing: all up to rounding."""
    logits, target = case(8, 100)
    target[2] = -100
    options = {"reduction": reduction, "label_smoothing": 0.1}
    loss, grad = backward(logits, target, **options)
    constant = new(seed=3).normal(8, 1, std=5.0)
    loss_c, grad_c = backward(logits + constant, target, **options)
    torch.testing.assert_close(loss, loss_c, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, grad_c, rtol=1e-5, atol=1e-5)

    order = torch.randperm(100).to(device())
    loss_p, grad_p = backward(
        logits[:, order], order.argsort()[target.clamp(0)].where(target >= 0, -100), **options
    )
    torch.testing.assert_close(loss, loss_p, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad[:, order], grad_p, rtol=1e-5, atol=1e-6)

    rows = torch.randperm(8).to(device())
    loss_r, grad_r = backward(logits[rows], target[rows], **options)
    assert same_bits(grad[rows], grad_r)
    torch.testing.assert_close(
        loss[rows] if reduction == "none" else loss, loss_r, rtol=1e-6, atol=0
    )

    options = {"reduction": reduction}
    loss, grad = backward(logits, target, **options)
    more = torch.cat((logits, torch.full((8, 5000), -INF, device=device())), dim=1)
    loss_m, grad_m = backward(more, target, **options)
    torch.testing.assert_close(loss, loss_m, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, grad_m[:, :100], rtol=1e-5, atol=1e-7)
    assert not grad_m[:, 100:].any()
    assert grad_m.sum(-1).abs().max() < 1e-6


def test_rows_are_alone():
    """Ignored rows may be dropped and batches cut; reductions agree with the sum of rows."""
    logits, target = case(9, 64)
    target[[1, 4, 8]] = -100
    logits[4] = float("nan")
    keep = target != -100
    losses, grads = backward(logits, target, reduction="none")
    some, grads_some = backward(logits[keep], target[keep], reduction="none")
    assert same_bits(losses[keep], some)
    assert same_bits(grads[keep], grads_some)
    assert not losses[~keep].any()
    assert not grads[~keep].any()
    parts = [backward(logits[a:b], target[a:b], reduction="none")[0] for a, b in ((0, 2), (2, 9))]
    assert same_bits(losses, torch.cat(parts))
    total, grads_sum = backward(logits, target, reduction="sum")
    mean, grads_mean = backward(logits, target)
    torch.testing.assert_close(total, losses.sum())
    torch.testing.assert_close(mean, total / 6)
    assert same_bits(grads, grads_sum)
    torch.testing.assert_close(grads_mean, grads_sum / 6)


def test_shapes_of_torch():
    """[V]; [M, V, d1, d2]; as torch, gradients in the shape of the input."""
    weight = new(seed=2).uniform(10, low=0.5)
    for shape, labels in (((10,), ()), ((3, 10, 4, 2), (3, 4, 2)), ((3, 10, 0), (3, 0))):
        logits, target = new().normal(*shape), new(seed=1).integers(10, *labels)
        for reduction in REDUCTIONS:
            loss, grad = backward(logits, target, weight, reduction=reduction)
            leaf = logits.clone().requires_grad_()
            expected = torch.nn.functional.cross_entropy(leaf, target, weight, reduction=reduction)
            expected.sum().backward()
            # torch's mean of nothing is NaN
            assert loss.shape == expected.shape
            assert grad.shape == shape
            if target.numel():
                torch.testing.assert_close(loss, expected.detach())
                torch.testing.assert_close(grad, leaf.grad)


def test_logits_may_be_used_again():
    """By other ops, by a checkpoint; `inplace` without gradients to form writes nothing."""
    logits, target = case(5, 60)
    target[3] = -100
    exact = logits.double().requires_grad_()
    (oracle.reduced(oracle.row_losses(exact * exact, target), "mean") + (exact**4).sum()).backward()
    leaf = logits.clone().requires_grad_()
    z = leaf * leaf

    def loss(z):
        return cross_entropy(z, target)

    (torch.utils.checkpoint.checkpoint(loss, z, use_reentrant=False) + (z * z).sum()).backward()
    oracle.close(leaf.grad, exact.grad)
    z = logits.clone()
    with torch.no_grad():
        cross_entropy(z, target, inplace=True)
        cross_entropy(z.clone().requires_grad_() * 1, target, inplace=True)
    cross_entropy(z, target, inplace=True)
    assert same_bits(z, logits)


def test_positive_infinity_poisons_its_row_alone():
    logits, target = new().normal(3, 40), new(seed=1).integers(40, 3)
    logits[1, (target[1] + 1) % 40] = float("inf")
    logits.requires_grad_()
    losses = cross_entropy(logits, target, reduction="none")
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    for rows in (losses[:, None], grad):
        assert rows.isnan().any(-1).tolist() == [False, True, False]
