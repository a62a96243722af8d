"""linear_cross_entropy beyond the generic suite: the work it does, chunks, hard rows, relations."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from liger_core.testing import Builder, load_module
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import linear_cross_entropy

oracle = load_module(Path(__file__).with_name("oracle.py"))
EXTRAS = load_module(Path(__file__).with_name("specs.py")).EXTRAS
REDUCTIONS = ("none", "sum", "mean")
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
M, H, V = 12, 16, 63


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def case(M=M, H=H, V=V, dtype=torch.float32, ignored=True):
    """x, W, b and labels of which every third does not count."""
    target = new(seed=3).integers(V, M)
    if ignored:
        target[1::3] = -100
    x, W, b = (
        new(dtype).normal(M, H),
        new(dtype, 1).normal(V, H, std=H**-0.5),
        new(dtype, 2).normal(V),
    )
    return [x, W, b], target


def run(tensors, target, wanted=(True, True, True), function=linear_cross_entropy, **options):
    """The loss, and gradients of x, W and b, None where not wanted, of sum(i * loss_i)."""
    x, W, b = (t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True))
    loss = function(x, W, target, linear_bias=b, **options)
    if loss.requires_grad:
        places = torch.arange(1, loss.numel() + 1).reshape(loss.shape).to(loss)
        (loss * places).sum().backward()
    return loss.detach(), x.grad, W.grad, b.grad


def formula(x, W, target, *, linear_bias, reduction="mean", normalizer=None, **options):
    options.pop("chunk_bytes", None)
    rows = oracle.row_losses(x @ W.t() + linear_bias, target, **options)
    return oracle.reduced(rows, reduction) if normalizer is None else rows[0].sum() / normalizer


def truth(tensors, target, **options):
    return run([t.double() for t in tensors], target, function=formula, **options)


def products(function):
    """(rows, inner, columns) of each matrix product that `function` runs."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        function()
    operands = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::addmm_": 1}
    found = []
    for event in profile.events():
        if event.name in operands:
            a, b = event.input_shapes[operands[event.name] :][:2]
            found.append((*a, b[-1]))
    return found


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_product_too_many(wanted, reduction):
    """One product each over the tokens that count: logits (twice for "none"), dx, dW."""
    tensors, target = case()
    valid = int((target != -100).sum())
    options = {"reduction": reduction, "chunk_bytes": 3 * V * 4}
    results = []
    counted = products(lambda: results.append(run(tensors, target, wanted, **options)))
    logits = 2 if reduction == "none" and any(wanted) else 1
    expected = (logits + wanted[0] + wanted[1]) * valid * H * V
    assert sum(math.prod(shape) for shape in counted) == expected, counted
    assert [grad is not None for grad in results[0][1:]] == list(wanted)
    for actual, right in zip(results[0], truth(tensors, target, reduction=reduction), strict=True):
        if actual is not None:
            oracle.close(actual, right)


def test_work_of_no_grad_and_of_a_second_backward():
    """Without gradients the logits alone. What was formed in the forward is handed out once."""
    tensors, target = case(ignored=False)

    def work(function):
        return sum(math.prod(shape) for shape in products(function)) / (M * H * V)

    with torch.no_grad():
        assert work(lambda: run(tensors, target)) == 1
    leaves = [t.detach().requires_grad_() for t in tensors]
    x, W, b = leaves
    loss = linear_cross_entropy(x, W, target, linear_bias=b) * 3
    assert work(lambda: loss.backward(retain_graph=True)) == 0
    with pytest.raises(RuntimeError, match="first backward"):
        loss.backward()
    loss = linear_cross_entropy(x, W, target, linear_bias=b, reduction="none").sum() * 3
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [t.clone() for t in first]
    # whoever gets a gradient may write it
    for t in first:
        t.zero_()
    for one, other in zip(kept, torch.autograd.grad(loss, leaves), strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("rows", [4, 12, 1, 5, 1000], ids=lambda n: f"chunk{n}")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none", "softcap": 2.0},
        {"reduction": "sum", **EXTRAS},
        {"z_loss": 0.125, "ignore_index": 7},
    ],
    ids=["plain", "softcap", "extras", "z_loss"],
)
def test_chunks(rows, options):
    """Dividing the rows, one, of one row, not dividing, larger than all: as fp64, to 1e-5."""
    for ignored in (False, True):
        tensors, target = case(ignored=ignored)
        target[target == -100] = options.get("ignore_index", -100)
        results = run(tensors, target, chunk_bytes=rows * V * 4, **options)
        for actual, right in zip(results, truth(tensors, target, **options), strict=True):
            oracle.close(actual, right)


@pytest.mark.parametrize("rows", [4, 12, 1, 5, 1000])
def test_number_of_chunks(rows):
    """As many products as chunks, none with more rows than asked for."""
    tensors, target = case()
    valid = int((target != -100).sum())
    counted = products(lambda: run(tensors, target, (False,) * 3, chunk_bytes=rows * V * 4))
    assert len(counted) == -(-valid // rows)
    assert max(shape[0] for shape in counted) == min(rows, valid)


@each_reduction
@pytest.mark.parametrize("M", [0, 6])
def test_nothing_counts(reduction, M):
    """0, gradients of zeros, no product; NaN in hidden states that do not count goes nowhere."""
    (x, W, b), target = case(M)
    x.fill_(float("nan"))
    target.fill_(-100)
    results = []
    counted = products(
        lambda: results.append(run((x, W, b), target, reduction=reduction, **EXTRAS))
    )
    loss, *grads = results[0]
    assert not counted
    assert loss.dtype == torch.float32
    assert loss.shape == (target.shape if reduction == "none" else ())
    for value in (loss, *grads):
        assert not value.any()
    assert [g.shape for g in grads] == [x.shape, W.shape, b.shape]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ignored_tokens_may_be_dropped(reduction):
    """Every gradient has the same bits without them; NaN in their hidden states goes nowhere."""
    (x, W, b), target = case()
    keep = target != -100
    x[~keep] = float("nan")
    options = {"reduction": reduction, "chunk_bytes": 5 * V * 4}
    loss, dx, dW, db = run((x, W, b), target, **options)
    loss_k, dx_k, dW_k, db_k = run((x[keep], W, b), target[keep], **options)
    torch.testing.assert_close(loss, loss_k)
    for one, other in ((dx[keep], dx_k), (dW, dW_k), (db, db_k)):
        assert same_bits(one, other)
    assert not dx[~keep].any()
    rows, dx, dW, db = run((x, W, b), target, reduction="none")
    assert not rows[~keep].any()
    assert not dx[~keep].any()
    assert dW.isfinite().all()
    torch.testing.assert_close(rows.sum() / (1 if reduction == "sum" else keep.sum()), loss)


@pytest.mark.parametrize("label", [-1, V, 2**40])
def test_label_out_of_range(label):
    """NaN in its row and in what sums over rows; the gradients of other rows are what they were."""
    (x, W, b), target = case(ignored=False)
    good = torch.arange(M, device=device()) != 4
    loss, dx, _, _ = run((x, W, b), target, reduction="none")
    target[4] = label
    loss_bad, dx_bad, dW_bad, _ = run((x, W, b), target, reduction="none")
    assert same_bits(loss[good], loss_bad[good])
    assert same_bits(dx[good], dx_bad[good])
    assert loss_bad[4].isnan()
    assert dx_bad[4].isnan().all()
    assert dW_bad.isnan().all()
    mean, dx_mean, _, _ = run((x, W, b), target)
    assert mean.isnan()
    assert dx_mean[good].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_is_fp32(dtype):
    tensors, target = case(dtype=dtype)
    for reduction in REDUCTIONS:
        loss, *grads = run(tensors, target, reduction=reduction, chunk_bytes=2 * V * 2)
        assert loss.dtype == torch.float32
        assert all(g.dtype == dtype for g in grads)
        oracle.close(loss, truth(tensors, target, reduction=reduction)[0], 4e-3)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_permutations_and_batches(reduction):
    """An order of tokens or classes and a constant in the bias change rounding only."""
    (x, W, b), target = case(ignored=False)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    loss, dx, dW, db = run((x, W, b), target, **options)
    rows, classes = torch.randperm(M).to(device()), torch.randperm(V).to(device())
    loss_p, dx_p, dW_p, db_p = run(
        (x[rows], W[classes], b[classes] + 3.0), classes.argsort()[target[rows]], **options
    )
    pairs = (loss, loss_p), (dx[rows], dx_p), (dW[classes], dW_p), (db[classes], db_p)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # micro-batches that share a normalizer add up to the whole
    count = torch.tensor(float(M), device=device())
    parts = [run((x[s], W, b), target[s], normalizer=count) for s in (slice(0, 5), slice(5, M))]
    whole = run((x, W, b), target)
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), whole[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts[0][2] + parts[1][2], whole[2], rtol=1e-5, atol=1e-6)


def test_reductions_agree():
    tensors, target = case()
    valid = int((target != -100).sum())
    rows = linear_cross_entropy(*tensors[:2], target, linear_bias=tensors[2], reduction="none")
    total, dx, dW, db = run(tensors, target, reduction="sum")
    torch.testing.assert_close(total, rows.sum())
    for options, factor in (({}, 1 / valid), ({"normalizer": 7.0}, 1 / 7)):
        for a, b in zip(run(tensors, target, **options), (total, dx, dW, db), strict=True):
            torch.testing.assert_close(a, b * factor)


def test_tied_embedding_checkpoint_and_scale():
    """W is also the embedding, the loss lies in a checkpoint and is scaled."""
    (_, W, b), target = case()
    tokens = new(seed=4).integers(V, M)

    def loss(W, b, function):
        def head(x):
            return function(x, W, target, linear_bias=b) * 1.7

        return torch.utils.checkpoint.checkpoint(head, W[tokens].tanh(), use_reentrant=False)

    leaves = [t.clone().requires_grad_() for t in (W, b)]
    loss(*leaves, linear_cross_entropy).backward()
    exact = [t.double().requires_grad_() for t in (W, b)]
    loss(*exact, formula).backward()
    for leaf, right in zip(leaves, exact, strict=True):
        oracle.close(leaf.grad, right.grad)
