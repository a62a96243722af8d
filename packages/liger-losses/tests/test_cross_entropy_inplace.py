"""cross_entropy(inplace=True), where the logits become their gradient; loss scaling; the module."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.testing import Builder, assert_accurate, load_module
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import CrossEntropyLoss, cross_entropy, row_loss
from liger_losses.cross_entropy import cross_entropy_ref

oracle = load_module(Path(__file__).with_name("oracle.py"))
EXTRAS = load_module(Path(__file__).with_name("specs.py")).EXTRAS
KERNELS = use_kernels(torch.empty(0, device=device()))


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def case(M, V, dtype=torch.float32):
    """Logits as an op made them, and labels of which every third does not count."""
    target = new(seed=1).integers(V, M)
    target[1::3] = -100
    return new(dtype).normal(M, V, std=2.0).requires_grad_() * 1, target


def gradient(logits, target, **options):
    return torch.autograd.grad(cross_entropy(logits, target, **options), logits)[0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_logits_become_their_gradient(reduction):
    logits, target = case(6, 90)
    expected = gradient(logits, target, reduction=reduction)
    loss = cross_entropy(logits, target, reduction=reduction, inplace=True)
    right = oracle.reduced(oracle.row_losses(case(6, 90)[0], target), reduction)
    oracle.close(loss.detach(), right.detach())
    assert logits._version > 0
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-5, atol=1e-7)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)


def saved_before(leaf):
    z = leaf * 1
    return z, (z * z).sum()


def saved_by_its_maker(leaf):
    return leaf.tanh(), 0.0


def saved_as_its_base(leaf):
    z = (leaf * 1).view(2, 3, -1)
    return z.view(6, -1), (z * z).sum()


@pytest.mark.parametrize("made", [saved_before, saved_by_its_maker, saved_as_its_base])
def test_who_kept_the_logits_hears_of_it(made):
    """Torch's own error, in place of the wrong gradient that overwritten logits would give."""
    z, other = made(new().normal(6, 30).requires_grad_())
    loss = cross_entropy(z, case(6, 30)[1], inplace=True) + other
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_backward():
    logits, target = case(4, 20)
    loss = cross_entropy(logits, target, inplace=True) * 3
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="first backward"):
        loss.backward()


@pytest.mark.parametrize("options", [{}, {"reduction": "sum", **EXTRAS}], ids=["plain", "extras"])
@pytest.mark.parametrize("upstream", [1.0, 0.5])
def test_bf16_is_as_accurate_as_eager(upstream, options):
    logits, target = case(9, 400, torch.bfloat16)
    (eager,) = torch.autograd.grad(cross_entropy_ref(logits, target, **options) * upstream, logits)
    exact = logits.detach().double().requires_grad_()
    loss = cross_entropy_ref(exact, target, **options) * upstream
    (truth,) = torch.autograd.grad(loss, exact)
    loss = cross_entropy(logits, target, inplace=True, **options) * upstream
    (grad,) = torch.autograd.grad(loss, logits)
    assert_accurate("gradient", grad, eager, truth, bound=1.25)


def transposed(z):
    return z.t().contiguous().t()


def of_longer_rows(z):
    return torch.cat((z, z), dim=1)[:, : z.shape[1]]


def classes_second(z):
    """[M, V, 2] counts rows along its last dimension."""
    return torch.stack((z, z * 2), dim=-1)


@pytest.mark.parametrize("layout", [transposed, of_longer_rows, classes_second])
def test_logits_in_another_layout_are_left_alone(layout):
    logits, target = case(6, 30)
    z = layout(logits)
    target = target if z.ndim == 2 else target[:, None].expand(-1, 2)
    before = z.detach().clone()
    (grad,) = torch.autograd.grad(cross_entropy(z, target, inplace=True), z)
    assert same_bits(z.detach(), before)
    assert same_bits(grad, gradient(z.detach().requires_grad_(), target))


def test_part_of_a_batch():
    """Rows of a larger tensor, as where a prompt's logits are cut off: only these are written."""
    logits, target = case(9, 40)
    before = logits.detach().clone()
    part = logits[2:8]
    cross_entropy(part, target[2:8], inplace=True).backward(inputs=[part])
    assert same_bits(logits[:2].detach(), before[:2])
    assert same_bits(logits[8:].detach(), before[8:])
    leaf = before.requires_grad_()
    loss = cross_entropy((leaf * 1)[2:8], target[2:8], inplace=True)
    (grad,) = torch.autograd.grad(loss, leaf)
    target[[0, 1, 8]] = -100
    expected = gradient(leaf, target)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
def test_fp16_with_loss_scaling(inplace):
    """Gradients of a mean over many tokens lie below fp16's range until they are scaled."""
    M, V = (24, 8192) if KERNELS and device().type == "cpu" else (256, 8192)
    logits, target = new(torch.float16).normal(M, V, std=0.5), new(seed=1).integers(V, M)
    exact = logits.double().requires_grad_()
    (truth,) = torch.autograd.grad(torch.nn.functional.cross_entropy(exact, target), exact)
    # the largest power of two that keeps the label's gradient in range, as a GradScaler would find
    scale = 2.0 ** int(torch.log2(3e4 / truth.abs().max()))
    logits.requires_grad_()
    (eager,) = torch.autograd.grad(cross_entropy_ref(logits, target) * scale, logits)
    z = logits * 1
    (grad,) = torch.autograd.grad(cross_entropy(z, target, inplace=inplace) * scale, z)
    assert_accurate("gradient", grad, eager, truth * scale, bound=1.25)
    small = torch.ones_like(truth, dtype=torch.bool).scatter_(1, target[:, None], False)
    error = (grad.double() - truth * scale)[small].norm() / (truth * scale)[small].norm()
    assert error < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 3, "reduction": "sum"},
        {"reduction": "none", **EXTRAS},
        {"inplace": True},
    ],
    ids=["plain", "sum", "extras", "inplace"],
)
def test_module_is_the_function(options):
    weight = new(seed=2).uniform(30, low=0.5)
    module = CrossEntropyLoss(weight, **options)
    _, target = case(5, 30)
    expected = cross_entropy(case(5, 30)[0], target, weight, **options)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(case(5, 30)[0], target).detach(), expected.detach())
        assert repr(twin) == repr(module)
        assert "z_loss=" in repr(twin)
    parent = torch.nn.CrossEntropyLoss(torch.ones_like(weight))
    parent.load_state_dict(module.state_dict())
    module.load_state_dict(parent.state_dict())
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    assert same_bits(parent.weight, weight)
    assert CrossEntropyLoss().state_dict() == torch.nn.CrossEntropyLoss().state_dict() == {}


@pytest.fixture
def in_pairs(monkeypatch):
    """Of each launch, whether it loads two logits at once."""
    if not KERNELS:
        pytest.skip("PyTorch computes it without a kernel")
    seen, launch = [], row_loss.launch
    monkeypatch.setattr(
        row_loss, "launch", lambda *a, **k: seen.append(k["PAIRS"]) or launch(*a, **k)
    )
    return seen


@pytest.mark.parametrize(
    ("dtype", "offset", "stride", "V", "pairs"),
    [
        (torch.bfloat16, 0, 8, 8, True),
        (torch.bfloat16, 2, 10, 8, True),
        (torch.bfloat16, 1, 8, 8, False),
        (torch.bfloat16, 0, 9, 8, False),
        (torch.bfloat16, 0, 8, 7, False),
        (torch.float16, 0, 8, 8, False),
    ],
)
def test_two_logits_a_load_only_where_they_are_aligned(in_pairs, dtype, offset, stride, V, pairs):
    """An address of four bytes, which a GPU demands and the interpreter does not."""
    x = new(dtype).normal(64).as_strided((3, V), (stride, 1), offset)
    loss = cross_entropy(x, torch.tensor([0, V - 1, 3], device=device()), reduction="none")
    expected = torch.nn.functional.cross_entropy(
        x.float(), torch.tensor([0, V - 1, 3], device=device()), reduction="none"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert in_pairs == [pairs]


def test_memory_of_others_may_begin_at_any_address(in_pairs):
    flat = new(torch.bfloat16).normal(64)
    # an exchanged tensor begins where the view did, with an offset of 0
    x = torch.from_dlpack(flat[1:25]).view(3, 8)
    assert x.storage_offset() == 0
    target = torch.tensor([0, 7, 3], device=device())
    loss = cross_entropy(x, target, reduction="none")
    expected = torch.nn.functional.cross_entropy(x.float(), target, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert in_pairs == [False]
