"""linear_cross_entropy beside torch's function and module; opcheck, autocast, fp16, memory."""

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.testing import Builder, assert_accurate, load_module
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import LinearCrossEntropyLoss, linear_cross_entropy
from liger_losses.head_op import head_loss, head_loss_backward

EXTRAS = load_module(Path(__file__).with_name("specs.py")).EXTRAS
KERNELS = use_kernels(torch.empty(0, device=device()))
INTERPRETED = KERNELS and device().type == "cpu"
M, H, V = 9, 16, 40
functional = torch.nn.functional
needs_torch_function = pytest.mark.skipif(
    not hasattr(functional, "linear_cross_entropy"), reason="torch 2.13 brought the function"
)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def case(M=M, H=H, V=V, dtype=torch.float32):
    """x, W, b that require gradients, and labels of which every third does not count."""
    target = new(seed=3).integers(V, M)
    target[1::3] = -100
    x, W = new(dtype).normal(M, H), new(dtype, 1).normal(V, H, std=H**-0.5)
    return [t.requires_grad_() for t in (x, W, new(dtype, 2).normal(V))], target


@needs_torch_function
def test_signature_extends_that_of_torch():
    ours = inspect.signature(linear_cross_entropy).parameters
    for name, theirs in inspect.signature(functional.linear_cross_entropy).parameters.items():
        assert (ours[name].kind, ours[name].default) == (theirs.kind, theirs.default), name
    ours = inspect.signature(LinearCrossEntropyLoss).parameters
    for name, theirs in inspect.signature(torch.nn.LinearCrossEntropyLoss).parameters.items():
        # a head of several outputs per class, which the function does not take either
        if name != "out_features":
            assert (ours[name].kind, ours[name].default) == (theirs.kind, theirs.default), name


@needs_torch_function
@pytest.mark.filterwarnings("ignore:.*linear_cross_entropy")
@pytest.mark.parametrize("chunked", [False, True], ids=["", "chunked"])
@pytest.mark.parametrize(
    "options",
    [{}, {"ignore_index": 3}, {"label_smoothing": 0.2}, {"ignore_index": None, "weight": True}],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_equals_torch(chunked, options, bias):
    (x, W, b), target = case()
    if options.get("weight"):
        options = {**options, "weight": new(seed=4).uniform(V, low=0.5)}
    if chunked:
        options = {**options, "options": torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4)}
    # torch counts ignored labels out of range
    target = target.where(target != -100, options.get("ignore_index") or -100)
    leaves = [x, W, b] if bias else [x, W]
    for reduction in ("mean", "sum", "none"):
        if chunked and reduction == "none":
            continue
        losses = [
            function(x, W, target, linear_bias=b if bias else None, reduction=reduction, **options)
            for function in (linear_cross_entropy, functional.linear_cross_entropy)
        ]
        torch.testing.assert_close(*losses)
        grads = (torch.autograd.grad((loss * loss).sum(), leaves) for loss in losses)
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_shapes():
    """[H] with one label, and any number of leading dimensions."""
    (_, W, b), _ = case()
    for shape in ((), (4,), (2, 3), (2, 0), (2, 3, 2)):
        h, target = new(seed=5).normal(*shape, H), new(seed=6).integers(V, *shape)
        rows = linear_cross_entropy(h, W, target, linear_bias=b, reduction="none")
        assert rows.shape == shape
        logits = functional.linear(h, W, b).reshape(-1, V)
        expected = functional.cross_entropy(logits, target.reshape(-1), reduction="none")
        torch.testing.assert_close(rows.reshape(-1), expected)
        h.requires_grad_()
        mean = linear_cross_entropy(h, W, target, linear_bias=b)
        mean.backward()
        assert mean.shape == ()
        assert h.grad.shape == h.shape


@pytest.mark.parametrize("per_token", [False, True])
def test_opcheck(per_token):
    """Schema, fake implementation, autograd and AOT tracing of both operators."""
    (x, W, b), target = case()
    weight, scale = new(seed=4).uniform(V, low=0.5), torch.tensor(0.5, device=device())
    factor = None if per_token else new(seed=5).uniform(M)
    # the extras, a chunk of three rows, and every token computed or only those that count
    settings = (-100, 0.1, 0.01, 5.0, 0.5, 3 * V * 4, per_token)
    # per token, with metrics, by probability
    how = (per_token, per_token, not per_token)
    need = [True, True, True]
    arguments = (x, W, b, target, weight, factor, scale, need, *settings, *how)
    torch.library.opcheck(head_loss, arguments)
    need[2] = False
    with torch.no_grad():
        arguments = (x, W, None, target, None, None, scale, need, *settings, *how)
        torch.library.opcheck(head_loss, arguments)
    if per_token:
        x, W, b = (t.detach() for t in (x, W, b))
        g, lse, rest = (new(seed=i).uniform(M) for i in range(3))
        arguments = (g, x, W, b, target, weight, lse, rest, [True] * 3, *settings)
        torch.library.opcheck(head_loss_backward, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(dtype, reduction):
    """As a linear layer: computed in `dtype`, gradients in that of the parameters."""
    leaves, target = case()
    with torch.autocast(device().type, dtype=dtype):
        x, W, b = leaves
        loss = linear_cross_entropy(x, W, target, linear_bias=b, reduction=reduction)
    half = [t.detach().to(dtype).requires_grad_() for t in leaves]
    x, W, b = half
    expected = linear_cross_entropy(x, W, target, linear_bias=b, reduction=reduction)
    assert loss.dtype == torch.float32
    assert same_bits(loss.detach(), expected.detach())
    for one, other in zip(
        torch.autograd.grad(loss.sum(), leaves),
        torch.autograd.grad(expected.sum(), half),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert same_bits(one, other.float())


def test_sums_under_autocast_have_the_range_of_fp32():
    """dW of a mean over many tokens, whose sum is beyond fp16."""
    x, W = torch.ones(70_000, 8, device=device()) * 3, torch.zeros(4, 8, device=device())
    target = torch.zeros(70_000, dtype=torch.int64, device=device())
    if INTERPRETED:
        x, target = x[:4] * 8000, target[:4]
    W.requires_grad_()
    with torch.autocast(device().type, dtype=torch.float16):
        linear_cross_entropy(x, W, target).backward()
    expected = x[0] * torch.tensor([-0.75, 0.25, 0.25, 0.25], device=device())[:, None]
    torch.testing.assert_close(W.grad, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("reduction", "loss_scale"), [("mean", 65536.0), ("mean", 1.0), ("sum", 65536.0), ("sum", 1.0)]
)
def test_fp16_with_loss_scaling(reduction, loss_scale):
    """No gradient underflows before it is scaled, and none overflows that torch's does not."""
    large = (reduction, loss_scale) == ("mean", 65536.0) and not INTERPRETED
    M, V = (2048, 8192) if large else (48, 1024)
    x, W = new(torch.float16).normal(M, 8, std=0.004), new(torch.float16, 1).normal(V, 8, std=0.1)
    target = new(seed=2).integers(V, M)
    leaves = x.requires_grad_(), W.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in leaves]
    ours, theirs, truths = (
        torch.autograd.grad(function(*tensors, target, reduction=reduction) * loss_scale, tensors)
        for function, tensors in ((linear_cross_entropy, leaves), (eager, leaves), (eager, exact))
    )
    # ours are rounded twice: formed for the sum, then scaled
    for name, *values in zip("xW", ours, theirs, truths, strict=True):
        assert_accurate(f"gradient of {name}", *values, bound=2.0)


def eager(x, W, target, reduction):
    logits = functional.linear(x, W)
    wide = logits.to(torch.promote_types(x.dtype, torch.float32))
    return functional.cross_entropy(wide, target, reduction=reduction)


@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "ignore_index": 3}, {"reduction": "none", **EXTRAS}], ids=str
)
def test_module_is_the_function(options):
    module = LinearCrossEntropyLoss(H, V, device=device(), **options)
    (x, _, _), target = case()
    settings = {name: value for name, value in options.items() if name != "bias"}
    head = module.linear
    target = target.where(target != -100, options.get("ignore_index", -100))
    expected = linear_cross_entropy(x, head.weight, target, linear_bias=head.bias, **settings)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x, target).detach(), expected.detach())
        assert repr(twin) == repr(module)
        assert "chunk_bytes=None" in repr(twin)
    if settings.get("reduction") != "none":
        total = module(x, target, normalizer=1.0)
        valid = (target != options.get("ignore_index", -100)).sum()
        torch.testing.assert_close(total, expected * valid)


@needs_torch_function
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_module_and_that_of_torch_exchange_state(weighted):
    weight = new(seed=4).uniform(V, low=0.5) if weighted else None
    ours = LinearCrossEntropyLoss(H, V, bias=True, weight=weight, device=device())
    theirs = torch.nn.LinearCrossEntropyLoss(H, V, bias=True, weight=weight, device=device())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert {"linear.weight", "linear.bias"} <= ours.state_dict().keys()
    (x, _, _), target = case()
    torch.testing.assert_close(ours(x, target), theirs(x, target))


MEMORY = """
import torch
from liger_losses import linear_cross_entropy

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

def eager(x, W, target):
    return torch.nn.functional.cross_entropy(x @ W.t(), target)

M, H, V = 4096, 16, 8192
x, W = torch.randn(M, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
target = torch.randint(V, (M,))
for function in (linear_cross_entropy, eager):
    function(x[:4], W, target[:4]).backward()
    before = peak()
    function(x, W, target).backward()
    print(peak() - before)
"""


def test_peak_memory_is_that_of_a_chunk():
    """fp32 logits of 128 MiB: eager holds three of them, we three chunks of 32 MiB."""
    if KERNELS or not Path("/proc/self/status").exists():
        pytest.skip("measured on the PyTorch path, by Linux' record of the resident set")
    ours, eagerly = subprocess.check_output([sys.executable, "-c", MEMORY], text=True).split()
    assert float(ours) < 128
    # what is beyond the peak that we left
    assert float(eagerly) + float(ours) > 256
