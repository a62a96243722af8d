"""Cases of vocab_parallel_cross_entropy that two ranks run; each compares its shard with the whole
in fp64.
"""

from collections import Counter

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_losses import (
    VocabParallelCrossEntropyLoss,
    cross_entropy,
    vocab_parallel_cross_entropy,
)
from oracle import close, reduced, row_losses
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = (37, 61)
V = sum(SIZES)
EXTRAS = {"label_smoothing": 0.125, "z_loss": 0.015625, "softcap": 5.0, "logit_scale": 0.5}
INF = float("inf")


class Collectives(TorchDispatchMode):
    """Counts what the ranks say to each other."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen[func._schema.name.split("::")[1].strip("_")] += 1
        return func(*args, **(kwargs or {}))


def device():
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def mine(t, dim=-1, sizes=SIZES):
    """This rank's part of what all have alike."""
    return t.split(sizes, dim)[dist.get_rank()]


def given(sizes=SIZES):
    return {"vocab_start": sum(sizes[: dist.get_rank()]), "vocab_size": sum(sizes)}


def case(M=9, dtype=torch.float32, std=2.0):
    """Logits of all ranks, and labels in both shards."""
    target = new(seed=1).integers(V, M)
    target[:2] = torch.tensor([3, V - 2])
    return new(dtype).normal(M, V, std=std), target


def backward(x, target, g=1.0, sizes=SIZES, **options):
    """The loss and this rank's gradient of sum(loss * g)."""
    leaf = mine(x, sizes=sizes).clone().requires_grad_()
    loss = vocab_parallel_cross_entropy(leaf, target, **options)
    (grad,) = torch.autograd.grad((loss * g).sum(), leaf)
    return loss.detach(), grad


def truth(x, target, g=1.0, reduction="mean", **options):
    """The loss and the gradient of all ranks' logits, in fp64."""
    leaf = x.detach().double().requires_grad_()
    loss = reduced(row_losses(leaf, target, **options), reduction)
    (grad,) = torch.autograd.grad((loss * g).sum(), leaf)
    return loss.detach(), grad


def same_everywhere(t):
    found = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(found, t.contiguous())
    return all(torch.equal(t, other) for other in found)


def check_formula():
    x, target = case()
    target[4:6] = -7
    # an upstream gradient that is expanded, and one that differs from row to row
    for reduction, g in (("mean", 1.0), ("sum", 0.5), ("none", new(seed=2).normal(9))):
        for options in ({}, EXTRAS):
            options = {"ignore_index": -7, "reduction": reduction, **options}
            right, d = truth(x, target, g, **options)
            for known in ({}, given()):
                loss, grad = backward(x, target.int(), g, **options, **known)
                assert loss.dtype == torch.float32
                assert same_everywhere(loss)
                close(loss, right)
                close(grad, mine(d))


def check_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        x, target = case(dtype=dtype)
        loss, grad = backward(x, target, 1024.0)
        right, d = truth(x, target, 1024.0)
        assert loss.dtype == torch.float32
        assert grad.dtype == dtype
        close(loss, right, 1e-6)
        close(grad, mine(d), torch.finfo(dtype).eps)


def check_sizes_and_order_of_shards():
    """One without classes; equal ones; in the reverse order of ranks."""
    x, target = case()
    for options in ({}, {"label_smoothing": 0.25}):
        right, d = truth(x, target, reduction="sum", **options)
        for sizes in ((0, V), (V, 0), (V // 2, V // 2)):
            loss, grad = backward(x, target, sizes=sizes, reduction="sum", **options)
            close(loss, right)
            close(grad, mine(d, sizes=sizes))
        N = SIZES[dist.get_rank()]
        start = 0 if dist.get_rank() else V - N
        leaf = x.narrow(1, start, N).clone().requires_grad_()
        options = {"vocab_start": start, "vocab_size": V, "reduction": "sum", **options}
        vocab_parallel_cross_entropy(leaf, target, **options).backward()
        close(leaf.grad, d.narrow(1, start, N))


def check_layouts():
    """More dimensions; logits that are part of longer rows, or transposed; a single row."""
    x, target = case(12)
    right, d = truth(x, target)
    long = torch.nn.functional.pad(mine(x), (1, 2))[:, 1:-2]
    turned = mine(x).t().contiguous().t()
    for x_in in (mine(x).reshape(2, 3, 2, -1), long, turned):
        leaf = x_in.detach().requires_grad_()
        loss = VocabParallelCrossEntropyLoss(**given())(leaf, target.view(leaf.shape[:-1]))
        loss.backward()
        close(loss.detach(), right)
        close(leaf.grad.view(12, -1), mine(d))
    row = vocab_parallel_cross_entropy(mine(x)[0], target[0], reduction="none")
    assert row.shape == ()
    close(row, truth(x[:1], target[:1])[0])


def check_normalizer():
    x, target = case()
    right, d = truth(x, target, reduction="sum")
    for normalizer in (7.0, torch.tensor(7, device=x.device)):
        loss, grad = backward(x, target, normalizer=normalizer)
        close(loss * 7, right)
        close(grad * 7, mine(d))


def check_labels_out_of_range():
    """NaN in their row on every rank; other rows keep their bits."""
    x, target = case()
    loss, grad = backward(x, target, reduction="none")
    good = torch.arange(9, device=x.device) != 2
    for label in (-1, -2, -3, V, V + 3, -(2**31) + 1, 2**62, -(2**63)):
        target[2] = label
        loss_bad, grad_bad = backward(x, target, reduction="none")
        assert loss_bad[2].isnan()
        assert grad_bad[2].isnan().all()
        assert torch.equal(loss_bad[good], loss[good])
        assert torch.equal(grad_bad[good], grad[good])
        assert backward(x, target)[0].isnan()


def check_ignored():
    """Their logits are not read; the label to be ignored may be a class of any shard."""
    x, target = case()
    for ignore in (5, SIZES[0] + 5, -100, -2):
        labels = target.clone()
        labels[3] = ignore
        labels[4:6] = torch.tensor([5, SIZES[0] + 5])
        dead = labels == ignore
        x_nan = x.masked_fill(dead[:, None], float("nan"))
        for options in ({}, EXTRAS):
            loss, grad = backward(x_nan, labels, ignore_index=ignore, **options)
            right, d = truth(x, labels, ignore_index=ignore, **options)
            close(loss, right)
            close(grad, mine(d))
            assert not grad[dead].any()
    for M in (0, 4):
        nothing = torch.full((M, V), float("nan"), device=x.device)
        labels = torch.full((M,), -100, device=x.device)
        for reduction in ("none", "sum", "mean"):
            loss, grad = backward(nothing, labels, reduction=reduction, **EXTRAS)
            assert not loss.any()
            assert not grad.any()


def check_infinite_logits():
    """A shard of -inf beside a good one; a masked label; rows that have no answer."""
    for shard in (0, 1):
        x, target = case()
        x.split(SIZES, 1)[shard][:6] = -INF
        # in rows 0 ... 5 labels are in the other shard, but for row 1
        target[:6] = 2 if shard else SIZES[0] + 2
        target[1] = SIZES[0] + 2 if shard else 2
        x[2, target[2]] = -INF
        x[6], x[7, 40], x[8, 41] = -INF, INF, float("nan")
        leaf = x.clone().requires_grad_()
        expected = torch.nn.functional.cross_entropy(leaf, target, reduction="none")
        expected[torch.tensor([0, 3, 4, 5])].sum().backward()
        loss, grad = backward(x, target, reduction="none")
        assert loss[1] == loss[2] == INF
        torch.testing.assert_close(loss, expected.detach(), equal_nan=True)
        torch.testing.assert_close(grad[[0, 3, 4, 5]], mine(leaf.grad)[[0, 3, 4, 5]])
        assert grad[1:3].isfinite().all()
        assert grad[6:].isnan().any(1).all()


def check_digits():
    """1 - p of the label for p up to 1 - 1e-9, and p of the others."""
    # a GPU's exp2 is good to two units
    limit = 1e-6 if device().type == "cuda" else 4e-7
    for around in (0.0, 50.0, -50.0):
        for label_logit in (0.0, 6.0, 14.0, 22.5, 24.5):
            x, target = case(20, std=1.0)
            rows = torch.arange(20, device=x.device)
            x[rows, target] = label_logit
            x += around
            _, grad = backward(x, target, reduction="sum")
            z = x.double()
            own = z[rows, target]
            z[rows, target] = -INF
            rest = torch.sigmoid(z.logsumexp(1) - own)
            start = given()["vocab_start"]
            here = (target >= start) & (target < start + grad.shape[1])
            label = (target - start).clamp(0, grad.shape[1] - 1)
            found = -grad[rows, label].double()
            error = ((found - rest) / rest)[here].abs().max()
            assert here.any()
            assert error <= limit, (label_logit, around, error)
            # lse, as a float, rounds p of the other classes
            others = mine((z - torch.logaddexp(z.logsumexp(1), own)[:, None]).exp())
            torch.testing.assert_close(
                grad.double().masked_fill(others == 0, 0.0), others, rtol=2e-5, atol=0
            )


def check_collectives():
    """One a call where the shard is known, and one for sizes where it is not; no backward."""
    x, target = case()
    for known, calls in (({}, 2), (given(), 1)):
        with Collectives() as collectives:
            backward(x, target, **known, **EXTRAS)
        assert sum(collectives.seen.values()) == calls, collectives.seen


def check_group_of_one_rank():
    """Equals the plain op; a rank outside raises."""
    alone, x, target = dist.new_group([1]), *case()
    leaf = x.clone().requires_grad_()
    if dist.get_rank() == 1:
        loss = vocab_parallel_cross_entropy(leaf, target, group=alone, **EXTRAS)
        loss.backward()
        right = cross_entropy(x, target, **EXTRAS)
        torch.testing.assert_close(loss.detach(), right, rtol=1e-6, atol=0)
        close(leaf.grad, truth(x, target, **EXTRAS)[1])
        return
    with pytest.raises(ValueError, match="not in the group"):
        vocab_parallel_cross_entropy(leaf, target, group=alone)


def check_compile():
    """In one graph where the shard is known; the exchange of sizes breaks it."""
    x, target = case()
    if use_kernels(x) and not x.is_cuda:
        return

    def loss_of(x, target, known):
        return vocab_parallel_cross_entropy(x * 2, target, **known, **EXTRAS) * 3

    for known in ({}, given()):
        torch._dynamo.reset()
        backend = "inductor" if x.is_cuda else "aot_eager"
        compiled = torch.compile(loss_of, backend=backend, fullgraph=bool(known))
        results = []
        for function in (loss_of, compiled):
            leaf = mine(x).clone().requires_grad_()
            loss = function(leaf, target, known)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        torch.testing.assert_close(*results)
