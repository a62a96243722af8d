"""linear_kl_div, linear_jsd and linear_tvd beyond the generic suite: work, chunks, relations."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import jsd, kl_div, linear_jsd, linear_kl_div, linear_tvd, tvd
from liger_losses.divergence_op import head_divergence, head_divergence_backward

M, H, K, V = 12, 16, 8, 63
KINDS = {
    "kl": (linear_kl_div, partial(kl_div, reduction="row")),
    "reverse_kl": (
        partial(linear_kl_div, direction="reverse"),
        partial(kl_div, reduction="row", direction="reverse"),
    ),
    "jsd": (partial(linear_jsd, beta=0.25), partial(jsd, reduction="none", beta=0.25)),
    "tvd": (linear_tvd, partial(tvd, reduction="none")),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def case(dtype=torch.float32, M=M):
    """Student (x, W, b), teacher (x, W, b), and labels of which every third does not count."""
    labels = new(seed=9).integers(V, M)
    labels[1::3] = -100
    student, teacher = (
        [
            new(dtype, seed).normal(M, size),
            new(dtype, seed + 1).normal(V, size, std=2 * size**-0.5),
            new(dtype, seed + 2).normal(V),
        ]
        for seed, size in ((0, H), (3, K))
    )
    return student, teacher, labels


def run(kind, student, teacher, wanted=(True, True, True), **options):
    """The loss, and gradients of x, W and b of the student, None where not wanted."""
    x, W, b = (t.detach().requires_grad_(w) for t, w in zip(student, wanted, strict=True))
    op = KINDS[kind][0]
    loss = op(x, W, *teacher[:2], student_bias=b, teacher_bias=teacher[2], **options)
    if loss.requires_grad:
        places = torch.arange(1, loss.numel() + 1).reshape(loss.shape).to(loss)
        (loss * places).sum().backward()
    return loss.detach(), x.grad, W.grad, b.grad


def truth(kind, student, teacher, labels=None, reduction="mean", temperature=1.0):
    """By the op on rows that exist, in fp64."""
    x, W, b = (t.detach().double().requires_grad_() for t in student)
    z, y = F.linear(x, W, b), F.linear(*(t.double() for t in teacher))
    loss = KINDS[kind][1](z, y, from_logits=True, labels=labels, temperature=temperature)
    if reduction != "none":
        count = len(loss) if labels is None else (labels != -100).sum()
        loss = loss.sum() / (count if reduction == "mean" else 1)
    places = torch.arange(1, loss.numel() + 1).reshape(loss.shape).to(loss)
    (loss * places).sum().backward()
    return loss.detach(), x.grad, W.grad, b.grad


def close(actual, right, limit=1e-5):
    """Within `limit` of the largest element."""
    assert actual.shape == right.shape
    assert (actual.double() - right).abs().max() <= limit * right.abs().max()


def products(function):
    """Multiplications of all matrix products that `function` runs."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        function()
    operands = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::addmm_": 1}
    total = 0
    for event in profile.events():
        if event.name in operands:
            a, b = event.input_shapes[operands[event.name] :][:2]
            total += math.prod((*a, b[-1]))
    return total


@each_kind
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [1, 4, 5, 1000], ids=lambda n: f"chunk{n}")
def test_chunks(kind, reduction, rows):
    """Of one row, dividing the rows, not dividing, larger than all: as fp64, to 1e-5."""
    student, teacher, labels = case()
    for options in ({"temperature": 2.0}, {"labels": labels}):
        options["reduction"] = reduction
        results = run(kind, student, teacher, chunk_bytes=rows * V * 4, **options)
        for actual, right in zip(results, truth(kind, student, teacher, **options), strict=True):
            close(actual, right)


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, True)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_product_too_many(wanted, reduction):
    """One product each over the tokens that count: both logits (twice for "none"), dx, dW."""
    student, teacher, labels = case()
    valid = int((labels != -100).sum())
    options = {"reduction": reduction, "labels": labels, "chunk_bytes": 3 * V * 4}
    counted = products(lambda: run("jsd", student, teacher, wanted, **options))
    logits = 2 if reduction == "none" else 1
    expected = logits * (H + K) + (wanted[0] + wanted[1]) * H
    assert counted == expected * valid * V
    with torch.no_grad():
        counted = products(lambda: run("jsd", student, teacher, wanted, **options))
    assert counted == (H + K) * valid * V


def test_second_backward():
    """What was formed in the forward is handed out once; losses of tokens form it each time."""
    student, teacher, _ = case()
    x, W, _ = (t.requires_grad_() for t in student)
    loss = linear_jsd(x, W, *teacher[:2]) * 3
    assert products(lambda: loss.backward(retain_graph=True)) == 0
    with pytest.raises(RuntimeError, match="first backward"):
        loss.backward()
    loss = linear_jsd(x, W, *teacher[:2], reduction="none").sum()
    first = torch.autograd.grad(loss, (x, W), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, (x, W)), strict=True):
        assert same_bits(one, other)


@each_kind
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("M", [0, 6])
def test_nothing_counts(kind, reduction, M):
    """0, gradients of zeros, no product; NaN in hidden states that do not count goes nowhere."""
    student, teacher, labels = case(M=M)
    student[0].fill_(float("nan"))
    labels.fill_(-100)
    results = []
    options = {"labels": labels, "reduction": reduction}
    assert not products(lambda: results.append(run(kind, student, teacher, **options)))
    assert results[0][0].shape == ((M,) if reduction == "none" else ())
    for value in results[0]:
        assert not value.any()


@each_kind
def test_ignored_tokens_may_be_dropped(kind):
    """Every gradient has the same bits without them; NaN in their hidden states goes nowhere."""
    student, teacher, labels = case()
    keep = labels != -100
    student[0][~keep] = float("nan")
    teacher[0][~keep] = float("nan")
    options = {"chunk_bytes": 5 * V * 4}
    loss, dx, dW, db = run(kind, student, teacher, labels=labels, **options)
    kept = [[t[0][keep], *t[1:]] for t in (student, teacher)]
    loss_k, dx_k, dW_k, db_k = run(kind, *kept, **options)
    torch.testing.assert_close(loss, loss_k)
    for one, other in ((dx[keep], dx_k), (dW, dW_k), (db, db_k)):
        assert same_bits(one, other)
    assert not dx[~keep].any()


def test_few_ignored_tokens_are_computed():
    """One in a hundred is not worth a gather; its NaN goes nowhere through the rows."""
    student, teacher, labels = case(M=100)
    labels.fill_(0)
    labels[7] = -100
    options = {"labels": labels, "reduction": "sum"}
    results = run("jsd", student, teacher, **options)
    for actual, right in zip(results, truth("jsd", student, teacher, **options), strict=True):
        close(actual, right)
    assert not results[1][7].any()


@each_kind
def test_permutations_and_batches(kind):
    """An order of tokens or classes and constants in the biases change rounding only."""
    (x, W, b), (tx, tW, tb), _ = case()
    loss, dx, dW, db = run(kind, (x, W, b), (tx, tW, tb))
    rows, classes = torch.randperm(M).to(device()), torch.randperm(V).to(device())
    loss_p, dx_p, dW_p, db_p = run(
        kind,
        (x[rows], W[classes], b[classes] + 3.0),
        (tx[rows], tW[classes], tb[classes] - 2.0),
    )
    for one, other in (
        (loss, loss_p),
        (dx[rows], dx_p),
        (dW[classes], dW_p),
        (db[classes], db_p),
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # micro-batches that share a normalizer add up to the whole
    parts = [
        run(kind, (x[s], W, b), (tx[s], tW, tb), normalizer=float(M))
        for s in (slice(0, 5), slice(5, M))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), dx, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts[0][2] + parts[1][2], dW, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("per_token", [False, True])
def test_opcheck(per_token):
    """Schema, fake implementation, autograd and AOT tracing of both operators."""
    student, teacher, labels = case()
    student = [t.requires_grad_() for t in student]
    scale, need = torch.tensor(0.5, device=device()), [True, True, True]
    # a chunk of three rows, and every token computed or only those that count
    settings = ("jsd", 0.25, 2.0, -100, 3 * V * 4, per_token)
    arguments = (*student, *teacher, None, labels, scale, need, *settings, per_token)
    torch.library.opcheck(head_divergence, arguments)
    if per_token:
        student = [t.detach() for t in student]
        arguments = (
            new().uniform(M),
            *student,
            *teacher,
            None,
            None,
            [True, False, True],
            *settings,
        )
        torch.library.opcheck(head_divergence_backward, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    """fp32 losses; under autocast as of copies in `dtype`, gradients in that of the parameters."""
    student, teacher, _ = case()
    half = [[t.to(dtype) for t in head] for head in (student, teacher)]
    expected = run("jsd", *half)
    assert expected[0].dtype == torch.float32
    close(expected[0], truth("jsd", *half)[0], 4e-3)
    with torch.autocast(device().type, dtype=dtype):
        results = run("jsd", student, teacher)
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == torch.float32
        assert same_bits(one, other.float())


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_graph_replays_on_new_inputs(reduction):
    """In a CUDA graph every token is computed, whichever count."""
    student, teacher, labels = case(M=300)
    x, W, b = (t.requires_grad_() for t in student)

    def step():
        loss = linear_jsd(x, W, *teacher[:2], student_bias=b, labels=labels, reduction=reduction)
        return loss.detach(), *torch.autograd.grad(loss.sum(), (x, W))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
        labels.fill_(1)
        labels[:150] = -100
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
