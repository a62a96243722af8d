"""kl_div, jsd and tvd beside torch's function, trainers' formulas and their own modules."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import JSDLoss, KLDivLoss, TVDLoss, jsd, kl_div, tvd


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def pair(M, V):
    return new().normal(M, V, std=2.0), new(seed=1).normal(M, V, std=2.0)


def test_signature_extends_that_of_torch():
    ours = inspect.signature(kl_div).parameters
    for name, theirs in inspect.signature(F.kl_div).parameters.items():
        # deprecated in torch
        if name not in ("size_average", "reduce"):
            assert ours[name].default == theirs.default, name
    assert issubclass(KLDivLoss, torch.nn.KLDivLoss)


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
@pytest.mark.parametrize("shape", [(70,), (3, 70), (2, 3, 70)], ids=str)
def test_kl_div_is_torch(shape, reduction, log_target):
    x = new().normal(*shape).log_softmax(-1).requires_grad_()
    target = new(seed=1).normal(*shape).log_softmax(-1)
    target = target if log_target else target.exp()
    options = {"reduction": reduction, "log_target": log_target}
    losses = [function(x, target, **options) for function in (kl_div, F.kl_div)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    grads = (torch.autograd.grad((loss * loss).sum(), x)[0] for loss in losses)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_jsd_is_that_of_gkd(beta, temperature):
    """Written out as trainers do it, with a mixture in log space and F.kl_div."""
    x, y = pair(6, 90)
    u, v = ((t.double() / temperature).log_softmax(-1) for t in (x, y))
    if beta in (0.0, 1.0):
        rows = F.kl_div(*((u, v) if beta == 0.0 else (v, u)), reduction="none", log_target=True)
    else:
        m = torch.logsumexp(
            torch.stack((u + torch.tensor(1 - beta).log(), v + torch.tensor(beta).log())), 0
        )
        teacher, student = (F.kl_div(m, t, reduction="none", log_target=True) for t in (v, u))
        rows = beta * teacher + (1 - beta) * student
    loss = jsd(x, y, beta=beta, from_logits=True, temperature=temperature)
    rows = rows.sum(-1)
    torch.testing.assert_close(loss.double(), rows.mean(), rtol=2e-6, atol=0)
    total = jsd(x, y, beta=beta, from_logits=True, temperature=temperature, reduction="sum")
    torch.testing.assert_close(total.double(), rows.sum(), rtol=2e-6, atol=0)


def test_zero_probabilities():
    """0 log 0 = 0 in the target, also where the student's probability is 0."""
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], device=device())
    u = torch.tensor([[0.25, 0.25, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]], device=device()).log()
    u.requires_grad_()
    loss = kl_div(u, p, reduction="row")
    torch.testing.assert_close(loss, torch.full_like(loss, 0.6931472))
    (grad,) = torch.autograd.grad(loss.sum(), u)
    torch.testing.assert_close(grad, -p)
    each = kl_div(u, p, reduction="none")
    torch.testing.assert_close(each.sum(-1), loss)
    (grad,) = torch.autograd.grad(each.sum(), u)
    torch.testing.assert_close(grad, -p)


def test_second_backward():
    """What the forward formed is handed out once; losses of rows form it each time."""
    x, y = (t.log_softmax(-1) for t in pair(3, 70))
    x.requires_grad_()
    loss = jsd(x, y)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="first backward"):
        loss.backward()


@pytest.mark.parametrize(
    ("module", "function", "options"),
    [
        (KLDivLoss, kl_div, {}),
        (KLDivLoss, kl_div, {"reduction": "batchmean", "log_target": True}),
        (KLDivLoss, kl_div, {"from_logits": True, "temperature": 2.0, "direction": "reverse"}),
        (JSDLoss, jsd, {"beta": 0.25}),
        (TVDLoss, tvd, {"from_logits": True, "ignore_index": 1}),
    ],
)
def test_modules_are_the_functions(module, function, options):
    x, y = (t.log_softmax(-1) for t in pair(6, 70))
    labels = new(seed=5).integers(3, 6)
    expected = function(x, y, labels=labels, **options)
    made = module(**options)
    for twin in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert same_bits(twin(x, y, labels), expected)
        assert all(f"{name}={value}" for name, value in options.items() if name in repr(twin))
        assert repr(twin) == repr(made)
