"""Cases of vocab_parallel_linear_cross_entropy that two ranks run; each compares its shard with the
whole in fp64.
"""

import itertools

import pytest
import torch
from liger_core.device import use_kernels
from liger_losses import vocab_parallel_linear_cross_entropy
from oracle import close, reduced, row_losses
from torch import distributed as dist
from vocab_parallel_cases import (
    EXTRAS,
    Collectives,
    V,
    given,
    mine,
    new,
    same_everywhere,
)

M, H = 24, 8
# four chunks of six tokens, or three where every third one is ignored
CHUNK = {"chunk_bytes": 6 * V // 2 * 4}
NEEDS = (True, True, True)


def head(dtype=torch.float32, ignored=False):
    """x, W and b of all ranks, and labels."""
    n, target = new(dtype), new(seed=1).integers(V, M)
    if ignored:
        target[::3] = -100
    return (n.normal(M, H), n.normal(V, H, std=0.5), n.normal(V)), target


def run(tensors, target, g=1.0, needs=NEEDS, **options):
    """The loss and this rank's gradients of sum(loss * g); None where frozen."""
    x, W, b = tensors
    shards = (x, mine(W, 0), mine(b))
    leaves = [t.clone().requires_grad_(n) for t, n in zip(shards, needs, strict=True)]
    loss = vocab_parallel_linear_cross_entropy(
        leaves[0], leaves[1], target, linear_bias=leaves[2], **options
    )
    if any(needs):
        (loss * g).sum().backward()
    return loss.detach(), *(t.grad for t in leaves)


def truth(tensors, target, g=1.0, reduction="mean", **options):
    """The same in fp64."""
    leaves = [t.double().requires_grad_() for t in tensors]
    logits = torch.nn.functional.linear(*leaves)
    loss = reduced(row_losses(logits, target, **options), reduction)
    dx, dW, db = torch.autograd.grad((loss * g).sum(), leaves)
    return loss.detach(), dx, mine(dW, 0), mine(db)


def check_linear_formula():
    for ignored, options in itertools.product((False, True), ({}, EXTRAS)):
        tensors, target = head(ignored=ignored)
        for reduction, g in (("mean", 1.0), ("sum", 0.5), ("none", new(seed=2).normal(M))):
            right = truth(tensors, target, g, reduction=reduction, **options)
            for how in ({}, {**CHUNK, **given()}):
                found = run(tensors, target, g, reduction=reduction, **options, **how)
                assert found[0].dtype == torch.float32
                # the loss, and what goes on to the layers before
                assert same_everywhere(found[0])
                assert same_everywhere(found[1])
                for ours, exact in zip(found, right, strict=True):
                    close(ours, exact)


def check_linear_frozen():
    """All combinations; what is frozen gets no gradient, and no collective."""
    tensors, target = head(ignored=True)
    for reduction, needs in itertools.product(
        ("mean", "none"), itertools.product((False, True), repeat=3)
    ):
        right = truth(tensors, target, reduction=reduction)
        with Collectives() as collectives:
            found = run(tensors, target, needs=needs, reduction=reduction, **given(), **CHUNK)
        for ours, exact, need in zip(found, right, (True, *needs), strict=True):
            assert need == (ours is not None)
            if need:
                close(ours, exact)
        # three chunks; numbers of rows in one go where only they are kept
        gathers = 3 if reduction == "mean" and any(needs) else 1
        expected = {"all_gather": gathers, "all_reduce": int(needs[0])}
        seen = {"all_gather": 0, "all_reduce": 0}
        for name, count in collectives.seen.items():
            seen["all_reduce" if "reduce" in name else "all_gather"] += count
        assert seen == expected, (reduction, needs, collectives.seen)


def check_input_gradient_left_to_the_caller():
    tensors, target = head(ignored=True)
    for reduction in ("mean", "none"):
        right = truth(tensors, target, reduction=reduction)
        found = run(tensors, target, reduction=reduction, reduce_input_grad=False)
        part = found[1].clone()
        assert not same_everywhere(part)
        dist.all_reduce(part)
        for ours, exact in zip((found[0], part, *found[2:]), right, strict=True):
            close(ours, exact)


def check_linear_half_precision():
    """fp16: gradients of a mean over many tokens would underflow, and a loss scale saves them."""
    for dtype in (torch.bfloat16, torch.float16):
        tensors, target = head(dtype=dtype)
        eps = torch.finfo(dtype).eps
        for reduction, normalizer, g in (
            ("none", None, 1.0),
            ("mean", None, 1.0),
            ("mean", 2.0**24, 2.0**20),
        ):
            options = {"reduction": "sum" if normalizer else reduction}
            right = truth(tensors, target, g / (normalizer or 1.0), **options)
            found = run(tensors, target, g, reduction=reduction, normalizer=normalizer, **CHUNK)
            assert found[0].dtype == torch.float32
            assert all(t.dtype == dtype for t in found[1:])
            close(found[0] * (normalizer or 1.0), right[0], 4 * eps)
            for ours, exact in zip(found[1:], right[1:], strict=True):
                close(ours, exact, 4 * eps)


def check_linear_labels():
    """Out of range: NaN on every rank. Nothing counts: zeros."""
    tensors, target = head()
    bad = target.clone()
    bad[3] = V
    for reduction in ("mean", "none"):
        loss, dx, dW, _ = run(tensors, bad, reduction=reduction)
        assert loss.reshape(-1)[3 if reduction == "none" else 0].isnan()
        assert dx[3].isnan().all()
        assert dx[4].isfinite().all()
        assert dW.isnan().any()
        for nothing in (torch.full_like(target, -100), target[:0]):
            few = (tensors[0][: len(nothing)] * float("nan"), *tensors[1:])
            for t in run(few, nothing, reduction=reduction, **EXTRAS):
                assert not t.any()


def check_second_backward():
    """Raises where the gradients were handed out; forms them once more where they were not."""
    tensors, target = head()
    for reduction in ("mean", "none"):
        x, W = tensors[0].clone().requires_grad_(), mine(tensors[1], 0).clone().requires_grad_()
        loss = vocab_parallel_linear_cross_entropy(x, W, target, reduction=reduction).sum()
        first = torch.autograd.grad(loss, (x, W), retain_graph=True)
        if reduction == "none":
            again = torch.autograd.grad(loss, (x, W))
            assert all(map(torch.equal, first, again))
            continue
        with pytest.raises(RuntimeError, match="handed out"):
            loss.backward()


def check_linear_autocast():
    tensors, target = head()
    with torch.autocast(tensors[0].device.type, dtype=torch.bfloat16):
        found = run(tensors, target)
    right = truth([t.bfloat16() for t in tensors], target)
    for ours, exact in zip(found, right, strict=True):
        assert ours.dtype == torch.float32
        close(ours, exact, 0.02)


def check_linear_without_gradients():
    tensors, target = head(ignored=True)
    for reduction in ("mean", "none"):
        with torch.no_grad(), Collectives() as collectives:
            loss = vocab_parallel_linear_cross_entropy(
                tensors[0], mine(tensors[1], 0), target, reduction=reduction, **given(), **CHUNK
            )
        plain = (*tensors[:2], torch.zeros_like(tensors[2]))
        close(loss, truth(plain, target, reduction=reduction)[0])
        assert sum(collectives.seen.values()) == 1


def check_linear_compile():
    """The graph breaks, and the result is that of the op as it is."""
    (x, W, _), target = head(ignored=True)
    if use_kernels(x) and not x.is_cuda:
        return

    def loss_of(x, W, target):
        return vocab_parallel_linear_cross_entropy(x * 2, W, target, **given(), **CHUNK) * 3

    torch._dynamo.reset()
    backend = "inductor" if x.is_cuda else "aot_eager"
    results = []
    for function in (loss_of, torch.compile(loss_of, backend=backend)):
        leaves = [t.clone().requires_grad_() for t in (x, mine(W, 0))]
        loss = function(*leaves, target)
        loss.backward()
        results.append((loss.detach(), *(t.grad for t in leaves)))
    torch.testing.assert_close(*results)


def check_graph_replays_on_new_inputs():
    """Under capture nothing is read from the device, and every token is computed."""
    (x, W, _), target = head(ignored=True)
    if not x.is_cuda:
        return
    leaves = [t.clone().requires_grad_() for t in (x, mine(W, 0))]

    def step():
        loss = vocab_parallel_linear_cross_entropy(*leaves, target, **given(), **CHUNK)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # a wait for the device would break the capture
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].mul_(0.5)
        target.copy_(target.roll(1))
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
