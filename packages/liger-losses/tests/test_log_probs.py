"""log_probs and linear_log_probs beyond the generic suite: relations, digits, labels, chunks."""

import itertools

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import cross_entropy, linear_log_probs, log_probs
from liger_losses.linear_log_probs import linear_log_probs_ref
from liger_losses.log_probs import log_probs_ref

ALL = ("entropy", "mean_logits", "squares", "argmax")
FIELDS = ("log_probs", "lse", "entropy", "mean_logits", "squares")


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def gradient(function, x, label, weights):
    """Gradient of a weighted sum of all differentiable statistics."""
    x = x.detach().requires_grad_()
    found = function(x, label, statistics=ALL)
    total = sum((getattr(found, name) * w).sum() for name, w in weights.items())
    return torch.autograd.grad(total, x)[0]


@pytest.mark.parametrize("alone", [*FIELDS, "all"])
def test_gradient_of_each_statistic(alone):
    x, label = new().normal(6, 300, std=3.0), new(seed=1).integers(300, 6)
    names = FIELDS if alone == "all" else (alone,)
    weights = {name: new(seed=5 + i).normal(6) for i, name in enumerate(names)}
    ours = gradient(log_probs, x, label, weights)
    exact = gradient(log_probs_ref, x.double(), label, {n: w.double() for n, w in weights.items()})
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_log_probs_are_the_negative_cross_entropy():
    x, label = new().normal(9, 77), new(seed=1).integers(77, 9)
    label[2] = -100
    found = log_probs(x, label, softcap=4.0, logit_scale=0.5)
    loss = cross_entropy(x, label, reduction="none", softcap=4.0, logit_scale=0.5)
    torch.testing.assert_close(found.log_probs, -loss, rtol=1e-6, atol=1e-6)


def test_permutations_and_constants():
    """Classes in another order, a constant added, classes of probability 0 appended."""
    x, label = new().normal(5, 130, std=2.0), new(seed=1).integers(130, 5)
    order = torch.randperm(130, device=x.device)
    plain = log_probs(x, label, statistics=ALL)
    moved = log_probs(x[:, order], order.argsort()[label], statistics=ALL)
    shifted = log_probs(x + 3.0, label, statistics=ALL)
    wider = log_probs(
        torch.cat((x, x.new_full((5, 70), float("-inf"))), dim=1), label, statistics=ALL
    )
    for other in (moved, shifted, wider):
        for name in ("log_probs", "entropy", "squares"):
            torch.testing.assert_close(
                getattr(other, name), getattr(plain, name), rtol=1e-5, atol=1e-5
            )
    assert same_bits(order[moved.argmax], plain.argmax)
    torch.testing.assert_close(shifted.lse, plain.lse + 3.0)
    torch.testing.assert_close(shifted.mean_logits, plain.mean_logits + 3.0)


@pytest.mark.parametrize("margin", [5.0, 12.0, 20.0])
def test_digits_of_a_certain_label(margin):
    """1 - p_t keeps its digits when p_t rounds to 1."""
    x, label = new().normal(4, 200), torch.zeros(4, dtype=torch.int64, device=device())
    x[:, 0] = x[:, 1:].amax(1) + margin
    ours = gradient(log_probs, x, label, {"log_probs": torch.ones(4, device=x.device)})
    exact = gradient(
        log_probs_ref, x.double(), label, {"log_probs": x.new_ones(4, dtype=torch.float64)}
    )
    # p_t itself rounds in fp64 too, where the sum of the others does not
    others = x.double()[:, 1:].exp().sum(1)
    truth = others / (others + x.double()[:, 0].exp())
    torch.testing.assert_close(ours[:, 0].double(), truth, rtol=2e-6, atol=0)
    torch.testing.assert_close(ours[:, 1:].double(), exact[:, 1:], rtol=1e-5, atol=0)


def test_masked_classes_and_hopeless_rows():
    """-inf classes count for nothing; a row of nothing else, and +inf, are NaN as in torch."""
    x, label = new().normal(4, 90), torch.tensor([3, 4, 5, 6], device=device())
    x[0, 10:] = float("-inf")
    x[1] = float("-inf")
    x[2, 7] = float("inf")
    found = log_probs(x, label, statistics=("entropy", "squares"))
    exact = log_probs_ref(x[:1].double(), label[:1], statistics=("entropy", "squares"))
    for name in ("log_probs", "lse", "entropy", "squares"):
        torch.testing.assert_close(getattr(found, name)[:1].double(), getattr(exact, name))
    assert found.log_probs[1:3].isnan().all()
    assert found.log_probs[3].isfinite()
    weights = dict.fromkeys(("log_probs", "entropy", "squares"), torch.ones(4, device=x.device))
    assert gradient(log_probs, x, label, weights)[[0, 3]].isfinite().all()


@pytest.mark.parametrize("label", [64, -1, 10**6, -(2**31) + 1])
def test_label_out_of_range(label):
    """Its row is NaN and no memory beyond the row is touched."""
    x = new().normal(3, 64).requires_grad_()
    target = torch.tensor([1, label, 2], device=x.device)
    found = log_probs(x, target, statistics=("entropy",))
    assert found.log_probs[1].isnan()
    assert found.log_probs[[0, 2]].isfinite().all()
    found.log_probs.sum().backward()
    assert x.grad[1].isnan().all()
    assert x.grad[[0, 2]].isfinite().all()


def head(seed=0, tokens=300):
    n = new(seed=seed)
    x, W, b = n.normal(tokens, 16), n.normal(50, 16, std=0.25), n.normal(50)
    target = n.integers(50, tokens)
    target[::3] = -100
    return x, W, b, target


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
def test_frozen_parts(needs):
    """All eight combinations; upstream gradients differ from token to token."""
    *tensors, target = head()
    upstream = new(seed=9).normal(300), new(seed=10).normal(300)
    results = []
    for op, dtype in ((linear_log_probs, torch.float32), (linear_log_probs_ref, torch.float64)):
        leaves = [
            t.to(dtype, copy=True).requires_grad_(n) for t, n in zip(tensors, needs, strict=True)
        ]
        x, W, b = leaves
        found = op(x, W, target, linear_bias=b, statistics=("entropy",))
        total = (found.log_probs * upstream[0] + found.entropy * upstream[1]).sum()
        if any(needs):
            total.backward()
        results.append((total.detach(), *(t.grad for t in leaves)))
    for ours, exact in zip(*results, strict=True):
        if exact is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def test_chunks_and_kept_logits_agree():
    """One chunk, whose logits are kept, and many, which are made again; each backward twice."""
    x, W, b, target = head()
    results = []
    for chunk_bytes in (None, 50 * 4 * 128, 50 * 4 * 7):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        found = linear_log_probs(
            leaves[0], leaves[1], target, linear_bias=leaves[2], statistics=ALL,
            chunk_bytes=chunk_bytes,
        )  # fmt: skip
        total = (found.log_probs.exp() + found.entropy * 0.1 + found.lse.square()).sum()
        first = torch.autograd.grad(total, leaves, retain_graph=True)
        second = torch.autograd.grad(total, leaves)
        assert all(same_bits(a, c) for a, c in zip(first, second, strict=True))
        results.append((*found, *first))
    for other in results[1:]:
        for a, c in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


def test_nothing_counts():
    x, W, b, target = head()
    leaves = [t.clone().requires_grad_() for t in (x, W, b)]
    found = linear_log_probs(
        leaves[0], leaves[1], torch.full_like(target, -100), linear_bias=leaves[2], statistics=ALL
    )
    assert not any(t.any() for t in found[:5])
    assert (found.argmax == -1).all()
    found.log_probs.sum().backward()
    assert not any(t.grad.any() for t in leaves)


def test_ignored_rows_are_never_read():
    x, W, _, target = head()
    x[target == -100] = float("nan")
    x.requires_grad_()
    found = linear_log_probs(x, W, target, statistics=ALL)
    assert all(t.isfinite().all() for t in found)
    found.log_probs.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.gpu
def test_cuda_graph():
    """Under capture every token is computed, without looking at the device."""
    x, W, b, target = head()
    leaves = [t.requires_grad_() for t in (x, W, b)]

    def run():
        found = linear_log_probs(x, W, target, linear_bias=b, statistics=("entropy",))
        return torch.autograd.grad((found.log_probs + found.entropy).sum(), leaves)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        target.copy_(target.roll(1))
        x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for a, c in zip(captured, run(), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)
