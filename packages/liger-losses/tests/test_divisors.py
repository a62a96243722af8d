"""What a mean is divided by: normalizers of any shape, weights that add up to nothing."""

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder
from liger_core.testing.running import device
from liger_losses import cross_entropy, jsd, linear_cross_entropy, linear_jsd
from liger_losses.cross_entropy import cross_entropy_ref

M, H, V = 8, 4, 16


def case():
    new = Builder(torch.float32, device())
    x, W = new.normal(M, H).requires_grad_(), new.normal(V, H).requires_grad_()
    return x, W, new.integers(V, M)


LOSSES = {
    "cross_entropy": lambda x, W, y, n: cross_entropy(x @ W.t(), y, normalizer=n),
    "linear_cross_entropy": lambda x, W, y, n: linear_cross_entropy(x, W, y, normalizer=n),
    "jsd": lambda x, W, y, n: jsd(
        F.log_softmax(x @ W.t(), -1),
        F.log_softmax(W[y].detach() @ W.detach().t(), -1),
        normalizer=n,
    ),
    "linear_jsd": lambda x, W, y, n: linear_jsd(x, W, x.detach(), W.detach() * 2, normalizer=n),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each_loss
@pytest.mark.parametrize("one", [torch.tensor([7]), torch.tensor([[7.0]])], ids=["[1]", "[1, 1]"])
def test_one_number_of_any_shape(loss, one):
    x, W, y = case()
    found = loss(x, W, y, one.to(device()))
    assert found.shape == ()
    expected = loss(x, W, y, 7.0)
    assert torch.equal(found, expected)
    for a, b in zip(*(torch.autograd.grad(t, (x, W)) for t in (found, expected)), strict=True):
        assert torch.equal(a, b)


@each_loss
def test_two_numbers(loss):
    with pytest.raises(ValueError, match=r"normalizer \(2,\) must be one number"):
        loss(*case(), torch.ones(2, device=device()))


@each_loss
def test_zero(loss):
    """As PyTorch divides: a step that goes on with it is skipped by loss scaling, or seen."""
    assert loss(*case(), 0).item() == float("inf")
    assert loss(*case(), torch.zeros((), device=device())).item() == float("inf")


@pytest.mark.parametrize("op", [cross_entropy, linear_cross_entropy])
def test_class_weight_that_requires_a_gradient(op):
    x, W, y = case()
    weight = torch.ones(V, device=device(), requires_grad=True)
    given = (x @ W.t(), y) if op is cross_entropy else (x, W, y)
    with pytest.raises(ValueError, match=r"weight .* requires a gradient"):
        op(*given, weight=weight)


def test_class_weights_of_nothing():
    """As in torch, not a sum that nothing divides."""
    x, W, y = case()
    logits, weight = (x @ W.t()).detach(), torch.ones(V, device=device())
    weight[y] = 0
    for smoothing in (0.0, 0.1):
        for op in (cross_entropy, F.cross_entropy):
            assert not op(logits, y, weight, label_smoothing=smoothing).isfinite()


def test_token_weights_of_nothing():
    """Tokens of weight 0 do not count; weights that cancel leave nothing to divide by."""
    x, W, y = case()
    logits = (x @ W.t()).detach()
    none = torch.zeros(M, device=device())
    assert cross_entropy(logits, y, token_weight=none) == 0
    assert cross_entropy_ref(logits, y, token_weight=none) == 0
    cancel = torch.tensor([1.0, -1.0] * (M // 2), device=device())
    assert cross_entropy(logits, y, token_weight=cancel).isinf()
    assert cross_entropy_ref(logits, y, token_weight=cancel).isinf()
