"""kl_div, jsd and tvd beyond the generic suite: relations, digits, hard rows."""

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder, assert_accurate
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import jsd, kl_div, tvd

INF = float("inf")
# every kind, for logits and one loss a row
KINDS = {
    "kl": (kl_div, {"reduction": "row"}),
    "reverse_kl": (kl_div, {"reduction": "row", "direction": "reverse"}),
    "jsd": (jsd, {"reduction": "none", "beta": 0.25}),
    "tvd": (tvd, {"reduction": "none"}),
}
LOG_TARGET = {kind: {"log_target": True} if "kl" in kind else {} for kind in KINDS}
each_kind = pytest.mark.parametrize("kind", KINDS)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def pair(M, V, dtype=torch.float32, std=2.0):
    return new(dtype).normal(M, V, std=std), new(dtype, 1).normal(M, V, std=std)


def run(kind, x, y, scale=1.0, **options):
    """The losses of rows of logits, and the gradient of their sum times `scale`."""
    op, more = KINDS[kind]
    x = x.detach().requires_grad_()
    loss = op(x, y, **{"from_logits": True, **more, **options})
    (grad,) = torch.autograd.grad(loss.sum() * scale, x)
    return loss.detach(), grad


def formula(kind, x, y, temperature=1.0):
    """The same in fp64, by the definitions."""
    x = x.detach().double().requires_grad_()
    u, v = ((t / temperature).log_softmax(-1) for t in (x, y.double()))
    q, p = u.exp(), v.exp()
    m = (0.25 * p + 0.75 * q).log()
    loss = {
        "kl": lambda: (p * (v - u)).sum(-1),
        "reverse_kl": lambda: (q * (u - v)).sum(-1),
        "jsd": lambda: (0.25 * p * (v - m) + 0.75 * q * (u - m)).sum(-1),
        "tvd": lambda: 0.5 * (p - q).abs().sum(-1),
    }[kind]()
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), grad


def close(actual, truth, limit=1e-5):
    """Within `limit` of the largest element."""
    assert actual.shape == truth.shape
    assert (actual.double() - truth).abs().max() <= limit * truth.abs().max()


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_formula(kind, temperature):
    x, y = pair(5, 300)
    for actual, right in zip(
        run(kind, x, y, temperature=temperature), formula(kind, x, y, temperature), strict=True
    ):
        close(actual, right)


@each_kind
def test_constants_permutations_and_concatenation(kind):
    """Constants and orders of classes change rounding only; rows and batches not even that."""
    x, y = pair(6, 200)
    loss, grad = run(kind, x, y)
    for other in (
        run(kind, x + new(seed=3).normal(6, 1, std=5.0), y + new(seed=4).normal(6, 1, std=5.0)),
        run(kind, F.pad(x, (0, 60), value=-INF), F.pad(y, (0, 60), value=-INF)),
    ):
        torch.testing.assert_close(other[0], loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other[1][:, :200], grad, rtol=1e-4, atol=1e-6)
        assert not other[1][:, 200:].any()
    order = torch.randperm(200).to(device())
    loss_p, grad_p = run(kind, x[:, order], y[:, order])
    torch.testing.assert_close(loss_p, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad_p, grad[:, order], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad.sum(-1), torch.zeros_like(loss), rtol=0, atol=1e-6)
    rows = torch.randperm(6).to(device())
    for one, other in zip(run(kind, x[rows], y[rows]), (loss, grad), strict=True):
        assert same_bits(one, other[rows])
    halves = [run(kind, x[part], y[part]) for part in (slice(0, 2), slice(2, 6))]
    assert same_bits(torch.cat([half[0] for half in halves]), loss)
    assert same_bits(torch.cat([half[1] for half in halves]), grad)


def test_symmetry():
    """JSD: the roles swap with beta and 1 - beta; TVD has no roles; both are bounded."""
    x, y = (t.log_softmax(-1) for t in pair(7, 150, std=6.0))
    for beta in (0.5, 0.125):
        one = jsd(x, y, beta=beta, reduction="none")
        torch.testing.assert_close(one, jsd(y, x, beta=1 - beta, reduction="none"))
        assert (one > 0).all()
        assert (one < 0.6931472).all()
    one = tvd(x, y, reduction="none")
    torch.testing.assert_close(one, tvd(y, x, reduction="none"))
    assert (one < 1).all()


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_rows_cost_nothing(kind, dtype):
    x, _ = pair(4, 4500, dtype, std=5.0)
    loss, grad = run(kind, x, x.clone())
    assert not loss.any()
    assert not grad.any()
    u = x.log_softmax(-1)
    loss, grad = run(kind, u, u.clone(), from_logits=False, **LOG_TARGET[kind])
    assert not loss.any()
    if kind in ("tvd", "jsd"):
        assert not grad.any()


def test_tvd_gradient_is_zero_where_probabilities_are_equal():
    u = new().normal(3, 40).log_softmax(-1)
    v = u.clone()
    v[:, 10:20] += 0.5
    v[:, 20:30] -= 0.5
    _, grad = run("tvd", u, v, from_logits=False)
    q = 0.5 * u.exp()
    expected = torch.zeros_like(u)
    expected[:, 10:20], expected[:, 20:30] = -q[:, 10:20], q[:, 20:30]
    torch.testing.assert_close(grad, expected)
    assert not grad[:, :10].any()


@each_kind
def test_digits_of_nearly_equal_rows(kind):
    """Where student and teacher differ by 1e-2: the loss to 2e-3 of its 1e-5, the gradient too."""
    x, noise = pair(4, 500)
    y = x + 0.01 * noise
    loss, grad = run(kind, x, y)
    right, d = formula(kind, x, y)
    close(loss, right, 2e-3)
    close(grad, d, 2e-4)


@each_kind
def test_masked_classes(kind):
    """-inf in one of the rows or in both, over whole tiles: the limits, and no NaN elsewhere."""
    x, y = pair(4, 9000)
    plain = run(kind, x, y)
    x[1, :200], y[1, 100:4500] = -INF, -INF
    x[2, 8000:], y[2, 8000:] = -INF, -INF
    loss, grad = run(kind, x, y)
    for row in (0, 3):
        assert same_bits(loss[row], plain[0][row])
        assert same_bits(grad[row], plain[1][row])
    part = run(kind, x[2:3, :8000], y[2:3, :8000])
    torch.testing.assert_close(loss[2:3], part[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad[2:3, :8000], part[1], rtol=1e-4, atol=1e-6)
    assert not grad[2, 8000:].any()
    if kind in ("kl", "reverse_kl"):
        assert loss[1] == INF
    else:
        u, v = (t[1].double().softmax(-1) for t in (x, y))
        m = 0.25 * v + 0.75 * u
        right = 0.25 * torch.xlogy(v, v / m) + 0.75 * torch.xlogy(u, u / m)
        right = right.nan_to_num(0.0).sum() if kind == "jsd" else 0.5 * (u - v).abs().sum()
        close(loss[1], right)
        assert grad[1].isfinite().all()
        assert not grad[1, :100].any()


@each_kind
@pytest.mark.parametrize("scalar", [False, True], ids=["rows", "scalar"])
@pytest.mark.parametrize("M", [0, 5])
def test_nothing_counts(kind, scalar, M):
    """No row, or ignored ones of NaN: 0 and a gradient of zeros."""
    x = torch.full((M, 70), float("nan"), device=device())
    labels = torch.full((M,), -100, dtype=torch.int32, device=device())
    loss, grad = run(kind, x, x, labels=labels, **{"reduction": "mean"} if scalar else {})
    assert loss.shape == (() if scalar else (M,))
    assert not loss.any()
    assert grad.shape == x.shape
    assert not grad.any()


@each_kind
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_rows_may_be_dropped(kind, reduction):
    x, y = pair(7, 90)
    labels = new(seed=5).integers(50, 7)
    labels[2::3] = 3
    keep = labels != 3
    x[~keep] = float("nan")
    loss, grad = run(kind, x, y, labels=labels, ignore_index=3, reduction=reduction)
    part, d = run(kind, x[keep], y[keep], reduction=reduction)
    torch.testing.assert_close(loss, part)
    torch.testing.assert_close(grad[keep], d)
    assert not grad[~keep].any()
    if reduction == "mean":
        shared = run(kind, x[keep], y[keep], normalizer=7.0, reduction=reduction)
        rows = run(kind, x[keep], y[keep])
        torch.testing.assert_close(shared[0], rows[0].sum() / 7)
        torch.testing.assert_close(shared[1], rows[1] / 7)


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_half_precision(kind, dtype, scale):
    """fp32 losses; gradients of a mean neither underflow before a loss scale nor round twice."""
    x, y = pair(64, 700, dtype)
    loss, grad = run(kind, x, y, scale, reduction="mean")
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    right, d = formula(kind, x, y)
    count = 64 * (700 if "kl" in kind else 1)
    close(loss, right.sum() / count)
    truth = d * (scale / count)
    # a power of two rounds nothing more, in fp16 where it is no subnormal
    bound = 2.0 if dtype == torch.float16 else 1.25
    assert_accurate(f"gradient of {kind}", grad, truth.to(dtype), truth, bound)
