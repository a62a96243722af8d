"""sparsemax beyond the generic suite: the projection's conditions, ties, bad rows, the module."""

import copy
import pickle

import pytest
import torch
from liger_activations import Sparsemax, softmax, sparsemax
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device

KERNELS = use_kernels(torch.empty(0, device=device()))
INF, NAN = float("inf"), float("nan")
# short rows, several of which share a program; a full tile; several tiles
WIDTHS = (5, 300, 16_384, 20_000)
CLOSE = {"rtol": 0, "atol": 3e-6}
each_width = pytest.mark.parametrize("N", WIDTHS)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def backward(x, dy, **options):
    """y, dx."""
    x = x.detach().requires_grad_()
    y = sparsemax(x, **options)
    return y.detach(), *torch.autograd.grad(y, x, dy)


def exact(x):
    """By sorting, in fp64."""
    x = x.double()
    top = x.sort(dim=-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1, device=x.device)
    taus = (top.cumsum(-1) - 1) / k
    size = (top > taus).sum(-1, keepdim=True)
    return (x - taus.gather(-1, size - 1)).clamp(min=0)


def rows(N, dtype=torch.float32):
    """Supports of one element, of a few, of most, of all; sorted both ways; and heavy tails."""
    x = [new(dtype, i).normal(N, std=std) for i, std in enumerate((8.0, 0.5, 3e-3, 1e-6))]
    x += [x[1].sort().values, x[2].sort(descending=True).values]
    x += [(torch.linspace(0, 1, N, device=device()) ** power).to(dtype) for power in (0.1, 8.0)]
    return torch.stack(x)


@each_width
def test_is_the_projection(N):
    """Against sorting, and by the conditions that only the nearest point of the simplex meets."""
    x = rows(N)
    y = sparsemax(x)
    torch.testing.assert_close(y.double(), exact(x), rtol=1e-5, atol=2e-7)
    assert (y >= 0).all()
    torch.testing.assert_close(y.double().sum(-1), torch.ones_like(x[:, 0]).double(), **CLOSE)
    gap = (x - y).double()
    tau = torch.where(y > 0, gap, -INF).amax(-1, keepdim=True)
    assert (torch.where(y > 0, gap, tau) - tau > -4e-7).all()
    assert (x <= tau + 4e-7)[y == 0].all()


@each_width
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_rounds_once(N, dtype):
    """The support is that of the exact result: ties are the rule here."""
    x = rows(N, dtype)
    truth = exact(x)
    y = sparsemax(x)
    eps = torch.finfo(dtype).eps
    # half an ulp, and the error of tau in fp32
    assert ((y.double() - truth).abs() <= truth * eps / 2 + 2e-7).all()
    unsure = (truth > 0) & (truth < 2e-7)
    assert ((y > 0) == (truth > 0))[~unsure].all()


@each_width
def test_gradient(N):
    """dy less its mean over the support there, 0 elsewhere."""
    x, dy = rows(N), new(seed=9).normal(8, N)
    y, dx = backward(x, dy)
    support = y > 0
    mean = torch.where(support, dy.double(), 0).sum(-1, keepdim=True) / support.sum(-1, True)
    truth = torch.where(support, dy.double() - mean, 0)
    torch.testing.assert_close(dx.double(), truth, rtol=1e-5, atol=1e-6)
    assert (dx[~support] == 0).all()
    assert same_bits(dx * 4.0, backward(x, dy * 4.0)[1])


@each_width
def test_constant_row(N):
    """Uniform, at any height; the gradient is dy less its mean."""
    dy = new().normal(3, N)
    heights = torch.tensor([0.0, -3e4, 1e-3], device=device())[:, None]
    y, dx = backward(heights.expand(3, N), dy)
    assert (y == y[0, 0]).all()
    torch.testing.assert_close(y[0, 0].item(), 1 / N, rtol=3e-7, atol=0)
    truth = dy.double() - dy.double().mean(-1, keepdim=True)
    torch.testing.assert_close(dx.double(), truth, rtol=1e-5, atol=1e-6)


@each_width
@pytest.mark.parametrize("lead", [1.0, 1.5, 1e4])
def test_dominant_element(N, lead):
    """One-hot from a lead of 1 on, where the others tie with tau and get no gradient."""
    x, dy = torch.zeros(2, N, device=device()), new().normal(2, N)
    at = torch.tensor([[0], [N - 1]], device=device())
    x.scatter_(1, at, lead)
    y, dx = backward(x, dy)
    assert torch.equal(y, torch.zeros_like(x).scatter_(1, at, 1.0))
    assert not dx.any()


@each_width
def test_ties(N):
    """Equal elements get equal shares, wherever they stand."""
    x = torch.full((2, N), -2.0, device=device())
    x[0, [0, N // 2, N - 1]] = 0.25
    x[1, [1, N - 2]] = 0.5
    x[1, N // 2] = 0.25
    y = sparsemax(x).double()
    assert sorted(y[0].nonzero().flatten().tolist()) == [0, N // 2, N - 1]
    torch.testing.assert_close(y[0, [0, N // 2, N - 1]].cpu(), torch.ones(3).double() / 3)
    shares = torch.tensor([1.25, 0.5, 1.25]).double() / 3
    torch.testing.assert_close(y[1, [1, N // 2, N - 2]].cpu(), shares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_tie_with_tau_is_outside(dtype):
    """Supports of k elements whose tau is exactly -q, and one more element there: its share is 0
    only if the quotient in a step is rounded correctly.
    """
    sizes = range(2, 64)
    x = torch.full((len(sizes), 80), -4.0)
    for row, k in zip(x, sizes, strict=True):
        # in units of 1/64: the least q with k q >= 1, and gaps below the top, each less than q
        q = -(-64 // k)
        gaps = k * q - 64
        row[0] = 0
        for i in range(1, k):
            row[i] = -min(gaps, q - 1) / 64
            gaps -= min(gaps, q - 1)
        assert not gaps
        row[70] = -q / 64
    x = x.to(device(), dtype)
    y, dx = backward(x, new(dtype).normal(*x.shape))
    assert (y > 0).sum(-1).tolist() == list(sizes)
    assert not y[:, 70].any()
    assert not dx[:, 70].any()


def test_small_element_of_an_fp16_support_keeps_its_gradient():
    """y would round to 0 there."""
    found = 0
    for k in range(100, 500):
        gap = torch.tensor(1.0 / k).half()
        if not 1e-9 < 1.0 / k - gap.item() < 2.0**-26:
            continue
        found += 1
        x = torch.full((1, 512), -8.0, dtype=torch.float16, device=device())
        x[0, :k], x[0, 511] = 0.0, -gap
        dy = torch.zeros_like(x)
        dy[0, 511] = 1.0
        y, dx = backward(x, dy)
        assert 0 < exact(x)[0, 511] < 2.0**-25
        torch.testing.assert_close(dx[0, 511].item(), 1 - 1 / (k + 1), rtol=1e-3, atol=0)
        assert y[0, 511] <= 2.0**-24
    assert found


@each_width
def test_shifts(N):
    """What is added to a row is gone, to the bit where the sum is exact; large ones cost nothing
    but the digits of x.
    """
    x = torch.round(rows(N) * 256) / 256
    dy = new(seed=1).normal(8, N)
    plain = backward(x, dy)
    for shift in (4096.0, -1024.0):
        assert ((x + shift) - shift == x).all()
        for a, b in zip(plain, backward(x + shift, dy), strict=True):
            assert same_bits(a, b)
    far = x + 1e6
    torch.testing.assert_close(sparsemax(far).double(), exact(far), rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("where", ["first", "last", "middle"])
def test_support_in_one_tile(where):
    """Of a row of five tiles; the others have nothing to add."""
    x = new().normal(2, 40_000, std=0.1)
    start = {"first": 0, "last": 39_900, "middle": 20_000}[where]
    x[:, start : start + 100] += 7.0
    y = sparsemax(x)
    torch.testing.assert_close(y.double(), exact(x), rtol=1e-5, atol=2e-7)
    assert not y[:, : max(start - 1, 0)].any()


@each_width
def test_masked_entries(N):
    """-inf gives 0, and what remains has the result that it has alone."""
    x, dy = new().normal(3, N, std=0.1), new(seed=1).normal(3, N)
    kept = torch.zeros(3, N, dtype=torch.bool, device=x.device)
    kept[0, -1] = True
    kept[1, : N // 2] = True
    kept[2, ::3] = True
    y, dx = backward(x.masked_fill(~kept, -INF), dy)
    assert (y[~kept] == 0).all()
    assert (dx[~kept] == 0).all()
    assert y[0, -1] == 1
    for row in range(3):
        alone = exact(x[row, kept[row]][None])[0]
        torch.testing.assert_close(y[row, kept[row]].double(), alone, rtol=1e-5, atol=2e-7)


@each_width
@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=["nan", "inf", "all-minus-inf"])
def test_bad_row_stays_alone(N, bad):
    """It ends, is NaN as a whole, and its neighbours keep their bits."""
    x, dy = new().normal(5, N), new(seed=1).normal(5, N)
    plain = backward(x, dy)
    x[2, slice(None) if bad == -INF else N - 2] = bad
    others = torch.tensor([0, 1, 3, 4], device=x.device)
    y, dx = backward(x, dy)
    assert y[2].isnan().all()
    assert same_bits(plain[0][others], y[others])
    assert same_bits(plain[1][others], dx[others])


def test_rows_of_one_column():
    x = new().normal(300, 1, std=100.0)
    y, dx = backward(x, new(seed=1).normal(300, 1))
    assert (y == 1).all()
    assert not dx.any()


def test_more_wide_rows_than_programs():
    """Each has the bits that it has alone."""
    x, dy = new().normal(8, 70_001), new(seed=1).normal(8, 70_001)
    y, dx = backward(x, dy)
    for row in (0, 4, 7):
        one = slice(row, row + 1)
        for a, b in zip((y, dx), backward(x[one], dy[one]), strict=True):
            assert same_bits(a[one], b)


@pytest.mark.parametrize("dim", [0, 1, -1, -3])
def test_any_dimension(dim):
    x, dy = new().normal(5, 7, 11), new(seed=1).normal(5, 7, 11)
    found = backward(x, dy, dim=dim)
    along = backward(x.movedim(dim, -1).contiguous(), dy.movedim(dim, -1).contiguous())
    for a, b in zip(found, along, strict=True):
        torch.testing.assert_close(a, b.movedim(-1, dim), rtol=1e-6, atol=1e-7)


def test_two_columns_are_a_clipped_line():
    """(1 + a - b) / 2 between 0 and 1, the sigmoid's counterpart; softmax differs."""
    x = new().normal(200, 2)
    first = ((1 + x[:, 0] - x[:, 1]) / 2).clamp(0, 1)
    torch.testing.assert_close(sparsemax(x), torch.stack((first, 1 - first), -1), **CLOSE)
    assert (softmax(x) - sparsemax(x)).abs().max() > 0.1


@pytest.mark.parametrize("module", [Sparsemax(), Sparsemax(1), Sparsemax(dim=-2)], ids=repr)
def test_module_is_the_function(module):
    x = new().normal(2, 3, 30)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x), sparsemax(x, module.dim))
        assert repr(twin) == f"Sparsemax(dim={module.dim})"
        assert twin.state_dict() == {}
    assert Sparsemax().dim == -1
