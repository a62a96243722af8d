"""linear_loss: any function of the statistics, of tokens or of whole groups, cut in any way."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.running import device
from liger_losses import linear_cross_entropy, linear_loss
from liger_losses.chunk_loop import Chunks
from torch.autograd.graph import saved_tensors_hooks

ALL = ("entropy", "mean_logits", "squares", "argmax")


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def case(*shape, H=8, V=50, dtype=torch.float64, ignored=3):
    x, W, b = new(dtype).normal(*shape, H), new(dtype, 1).normal(V, H), new(dtype, 2).normal(V)
    target = new(seed=3).integers(V, *shape)
    if ignored:
        target.view(-1)[1::ignored] = -100
    return [t.requires_grad_() for t in (x, W, b)], target


def everything(stats, weights, mask):
    """Every statistic in it, and not additive in a group."""
    total = (stats.log_probs + stats.entropy * stats.squares + stats.lse.cos()) * mask
    total = total + stats.mean_logits * mask
    total = total if total.ndim == 1 else total.flatten(1).sum(-1).square()
    return total * weights, {"lse": stats.lse, "two": (stats.argmax, total)}


def exact(leaves, target, weights, function=everything):
    """The same from logits in fp64, in one piece."""
    x, W, b = (t.detach().double().requires_grad_() for t in leaves)
    z = x @ W.t() + b
    counts = target != -100
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    found = {
        "log_probs": log_p.gather(-1, target.where(counts, 0)[..., None])[..., 0],
        "entropy": -(p * log_p).sum(-1),
        "squares": p.square().sum(-1),
        "lse": z.logsumexp(-1),
        "mean_logits": z.mean(-1),
        "argmax": z.argmax(-1),
    }
    found = {name: t.where(counts, 0) for name, t in found.items()}
    losses, aux = function(type("Stats", (), found), weights.double(), counts.double())
    loss = losses.sum() if target.ndim > 1 else losses.where(counts, 0.0).sum()
    return loss, torch.autograd.grad(loss, (x, W, b)), aux


def run(leaves, target, weights, function=everything, **options):
    loss, aux = linear_loss(
        function, *leaves[:2], target, weights, (target != -100).float(), linear_bias=leaves[2],
        statistics=ALL, **options,
    )  # fmt: skip
    return loss, torch.autograd.grad(loss, leaves), aux


def assert_same(ours, right):
    # some constants of the kernels are fp32
    torch.testing.assert_close(ours[0], right[0], rtol=1e-7, atol=1e-7)
    for a, b in zip(ours[1], right[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# bytes of one row of 50 classes in fp32, of seven, of all, and the default
@pytest.mark.parametrize("chunk_bytes", [200, 1400, 10**6, None])
@pytest.mark.parametrize("shape", [(23,), (5, 4), (4, 2, 3), (1, 7)])
@pytest.mark.parametrize("ignored", [0, 3])
def test_any_function_of_tokens_and_groups(shape, chunk_bytes, ignored):
    leaves, target = case(*shape, ignored=ignored)
    weights = new(seed=9).normal(shape[0])
    ours = run(leaves, target, weights, chunk_bytes=chunk_bytes)
    assert_same(ours, exact(leaves, target, weights))


@pytest.mark.parametrize("shape", [(23,), (5, 4)])
def test_aux_of_all_chunks(shape):
    leaves, target = case(*shape)
    weights = new(seed=9).normal(shape[0])
    _, _, aux = run(leaves, target, weights, chunk_bytes=1400)
    _, _, right = exact(leaves, target, weights)
    counts = target != -100
    torch.testing.assert_close(
        aux["lse"].double(), right["lse"].where(counts, 0), rtol=1e-5, atol=1e-5
    )
    argmax, total = aux["two"]
    assert torch.equal(argmax[counts], right["two"][0][counts])
    assert not argmax.requires_grad
    assert not total.requires_grad
    shown = counts if len(shape) == 1 else counts.any(-1)
    torch.testing.assert_close(
        total.double(), right["two"][1].where(shown, 0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("need", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("shape", [(23,), (5, 4)])
def test_frozen_parts(shape, need):
    leaves, target = case(*shape)
    weights = new(seed=9).normal(shape[0])
    right = exact(leaves, target, weights)[1]
    for leaf, n in zip(leaves, need, strict=True):
        leaf.requires_grad_(bool(n))
    loss, _ = linear_loss(
        everything, *leaves[:2], target, weights, (target != -100).float(),
        linear_bias=leaves[2], statistics=ALL, chunk_bytes=1400,
    )  # fmt: skip
    loss.backward()
    for leaf, grad, n in zip(leaves, right, need, strict=True):
        if n:
            torch.testing.assert_close(leaf.grad.double(), grad, rtol=1e-5, atol=1e-5)
        else:
            assert leaf.grad is None


def test_nothing_frozen_nothing_formed():
    """Without gradients the logits alone are made."""
    leaves, target = case(23)
    weights = new(seed=9).normal(23)
    with torch.no_grad():
        loss, _ = linear_loss(
            everything, *leaves[:2], target, weights, (target != -100).float(),
            linear_bias=leaves[2], statistics=ALL,
        )  # fmt: skip
    assert not loss.requires_grad
    torch.testing.assert_close(loss, exact(leaves, target, weights)[0], rtol=1e-7, atol=1e-7)


def test_hooks_see_what_is_kept():
    """The graph in the forward is its own, and gone by its end."""
    leaves, target = case(5, 4)
    saved = []

    def pack(t):
        saved.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        run_loss(leaves, target, new(seed=9).normal(5))
    assert [t.shape for t in saved] == [(5 * 4, 8), *(t.shape for t in leaves[1:])]


def nll(stats):
    return -stats.log_probs, ()


@pytest.mark.parametrize("shape", [(23,), (5, 4), (0,), (0, 3)])
def test_nothing_counts(shape):
    leaves, target = case(*shape)
    target.fill_(-100)
    loss, _ = linear_loss(
        nll if len(shape) == 1 else lambda s: (-s.log_probs.sum(-1), ()), *leaves[:2], target
    )
    assert loss.item() == 0.0
    loss.backward()
    for leaf in leaves[:2]:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_upstream_gradient_and_second_backward():
    leaves, target = case(23, dtype=torch.float32)
    loss, _ = linear_loss(nll, *leaves[:2], target)
    right = linear_cross_entropy(*leaves[:2], target, reduction="sum")
    torch.testing.assert_close(loss, right)
    grads = torch.autograd.grad(3.0 * loss, leaves[:2], retain_graph=True)
    for a, b in zip(grads, torch.autograd.grad(3.0 * right, leaves[:2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="handed out"):
        loss.backward()


def test_fp16_gradients_of_a_mean():
    """Gradients of 2^-20 a token would vanish in fp16, were they not scaled until the backward."""
    leaves, target = case(24, dtype=torch.float16, ignored=0)

    def mean(stats):
        return -stats.log_probs * 2.0**-20, ()

    loss, _ = linear_loss(mean, *leaves[:2], target)
    grads = torch.autograd.grad(loss * 2.0**20, leaves[:2])
    x, W = (t.detach().double().requires_grad_() for t in leaves[:2])
    right = torch.nn.functional.cross_entropy(x @ W.t(), target, reduction="sum")
    for a, b in zip(grads, torch.autograd.grad(right, (x, W)), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(23,), (5, 4)])
def test_compiled(shape):
    leaves, target = case(*shape)
    weights = new(seed=9).normal(shape[0])
    whole = torch.compile(run_loss, fullgraph=True, backend="aot_eager")
    loss = whole(leaves, target, weights)
    ours = loss, torch.autograd.grad(loss, leaves)
    assert_same(ours, exact(leaves, target, weights)[:2])


def run_loss(leaves, target, weights):
    mask = (target != -100).float()
    return linear_loss(
        everything, *leaves[:2], target, weights, mask, linear_bias=leaves[2], statistics=ALL
    )[0]


def test_bad_input():
    leaves, target = case(5, 4)
    with pytest.raises(ValueError, match=r"extras \(4,\) on .* must begin with the 5"):
        linear_loss(nll, *leaves[:2], target, torch.ones(4, device=target.device))
    with pytest.raises(ValueError, match=r"losses \[5\], one per leading entry"):
        linear_loss(nll, *leaves[:2], target)
    with pytest.raises(ValueError, match="statistics are"):
        linear_loss(nll, *leaves[:2], target, statistics=("median",))
    with pytest.raises(ValueError, match="must have a dimension"):
        linear_loss(nll, leaves[0][0, 0], leaves[1], target[0, 0])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(24,), (6, 4)])
def test_captured(shape):
    """In a graph every token is computed, and nothing waits for the device."""
    leaves, target = case(*shape)
    weights = new(seed=9).normal(shape[0])
    # without its graph, whose leaves are bound to this stream
    right = torch.utils._pytree.tree_map(torch.Tensor.detach, run(leaves, target, weights)[:2])
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(leaves, target, weights)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        loss, grads, _ = run(leaves, target, weights)
    graph.replay()
    torch.testing.assert_close(loss, right[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(grads, right[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [False, True], ids=["tokens", "groups"])
def test_large_gradients_of_fp16(groups):
    """Of a sum over many tokens, which are not small as those of a mean are."""
    (x, W, b), target = (
        case(4, 1024, dtype=torch.float16) if groups else case(4096, dtype=torch.float16)
    )

    def function(stats):
        each = stats.log_probs if stats.log_probs.ndim == 1 else stats.log_probs.sum(-1)
        return -each * 8.0, ()

    grads = {}
    for dtype in (torch.float16, torch.float64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, W, b)]
        loss, _ = linear_loss(function, *leaves[:2], target, linear_bias=leaves[2])
        grads[dtype] = torch.autograd.grad(loss, leaves)
    for half, exact in zip(grads[torch.float16], grads[torch.float64], strict=True):
        assert exact.abs().max() < 60000, "does not fit"
        torch.testing.assert_close(half.double(), exact, rtol=2e-2, atol=2e-2 * exact.abs().max())


def test_no_gradients_without_recording(monkeypatch):
    """Parameters that require a gradient cost one product in an evaluation."""
    (x, W, b), target = case(12)
    calls = []
    add = Chunks.add
    monkeypatch.setattr(Chunks, "add", lambda *a: (calls.append(1), add(*a)))
    function = lambda stats: (-stats.log_probs, ())  # noqa: E731
    with torch.no_grad():
        linear_loss(function, x, W, target, linear_bias=b)
    assert not calls
    linear_loss(function, x, W, target, linear_bias=b)
    assert calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_loss_without_statistics(dtype):
    """Gradients are zero, not missing."""
    (x, W, _), target = case(12, dtype=dtype)
    loss, _ = linear_loss(lambda stats: (stats.log_probs.detach() * 0 + 1, ()), x, W, target)
    loss.backward()
    assert not x.grad.any()
    assert not W.grad.any()


def test_meta_tensors_have_shapes_and_no_values():
    x = torch.empty(6, 8, device="meta", requires_grad=True)
    W = torch.empty(30, 8, device="meta", requires_grad=True)
    target = torch.empty(6, dtype=torch.int64, device="meta")
    loss, _ = linear_loss(lambda stats: (-stats.log_probs, ()), x, W, target)
    loss.backward()
    assert (loss.shape, x.grad.shape, W.grad.shape) == ((), x.shape, W.shape)
