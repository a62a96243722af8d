"""softmax beyond the generic suite: dimensions, dtypes, infinities, relations, the module."""

import copy
import pickle

import pytest
import torch
from liger_activations import Softmax, softmax
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device

KERNELS = use_kernels(torch.empty(0, device=device()))
INF, NAN = float("inf"), float("nan")
# short rows, several of which share a program; a full tile; several tiles
WIDTHS = (5, 300, 16_384, 20_000)
each_width = pytest.mark.parametrize("N", WIDTHS)


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def backward(x, dy, **options):
    """y, dx."""
    x = x.detach().requires_grad_()
    y = softmax(x, **options)
    return y.detach(), *torch.autograd.grad(y, x, dy)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_dimension(dim):
    """Bit for bit the softmax of the rows along it."""
    x, dy = new().normal(5, 7, 11), new(seed=1).normal(5, 7, 11)
    y, dx = backward(x, dy, dim=dim)
    rows = backward(x.movedim(dim, -1).contiguous(), dy.movedim(dim, -1).contiguous())
    exact = x.double().requires_grad_()
    truth = torch.softmax(exact, dim)
    truth.backward(dy.double())
    for ours, row, right in zip((y, dx), rows, (truth.detach(), exact.grad), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=1e-6)
        if KERNELS:
            assert same_bits(ours, row.movedim(-1, dim))


@pytest.mark.skipif(not KERNELS, reason="PyTorch always gives a contiguous result")
def test_layout_of_the_result():
    x = new().normal(2, 6, 3, 4)
    assert softmax(x).is_contiguous()
    assert softmax(x.transpose(-1, -2)).is_contiguous()
    images = x.to(memory_format=torch.channels_last)
    assert softmax(images, dim=1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not KERNELS, reason="what kernels save")
@each_width
def test_only_the_result_is_saved(N):
    saved = []
    x = new().normal(3, N).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = softmax(x)
    assert [t.data_ptr() for t in saved] == [y.data_ptr()]


@each_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_dtype_option(N, dtype):
    """The bits of casting x first, as in torch; the gradient comes in the dtype of x."""
    x, dy = new(dtype).normal(3, N), new(torch.float32, 1).normal(3, N)
    for to in (torch.float32, torch.float64, torch.bfloat16):
        y, dx = backward(x, dy.to(to), dtype=to)
        assert same_bits(y, softmax(x.to(to)))
        assert dx.dtype == x.dtype
        exact = x.double().requires_grad_()
        torch.softmax(exact, -1).backward(dy.to(to).double())
        eps = max(torch.finfo(dtype).eps, torch.finfo(to).eps)
        scale = exact.grad.abs().max().item()
        torch.testing.assert_close(dx.double(), exact.grad, rtol=8 * eps, atol=8 * eps * scale)


@each_width
def test_rows_sum_to_one_and_gradients_to_zero(N):
    y, dx = backward(new().normal(4, N, std=4.0), new(seed=1).normal(4, N))
    ones = torch.ones(4, device=y.device, dtype=torch.float64)
    torch.testing.assert_close(y.double().sum(-1), ones, rtol=0, atol=1e-5)
    torch.testing.assert_close(dx.double().sum(-1), 0 * ones, rtol=0, atol=1e-5)


@each_width
def test_shifts(N):
    """What is added to a row is gone, to the bit where the sum is exact; so are scales of dy."""
    x = torch.round(new().normal(3, N, std=2.0) * 64) / 64
    dy = new(seed=1).normal(3, N)
    y, dx = backward(x, dy)
    for shift in (2048.0, -512.0):
        assert ((x + shift) - shift == x).all()
        for a, b in zip((y, dx), backward(x + shift, dy), strict=True):
            if KERNELS:
                assert same_bits(a, b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert same_bits(dx * 4.0, backward(x, dy * 4.0)[1])


@each_width
@pytest.mark.parametrize("scale", [1e-4, 1.0, 80.0, 1e4, 1e30])
def test_digits_over_the_range(N, scale):
    """No overflow, and small results keep their digits as far as x has them."""
    x = new().normal(2, N, std=scale)
    truth = torch.softmax(x.double(), -1)
    y = softmax(x).double()
    normal = truth > 1e-37
    # the exponent of e is a difference of two numbers near the largest
    rtol = 4e-6 + 2e-7 * min((x.amax() - x[normal].amin()).item(), 90.0)
    torch.testing.assert_close(y[normal], truth[normal], rtol=rtol, atol=0)
    assert (y[~normal] < 1e-36).all()


@each_width
def test_masked_entries(N):
    """-inf gives 0 and changes nothing else, wherever it stands and however many there are."""
    x, dy = new().normal(3, N), new(seed=1).normal(3, N)
    kept = torch.zeros(3, N, dtype=torch.bool, device=x.device)
    # the only finite one comes last: all tiles before it are empty
    kept[0, -1] = True
    kept[1, : N // 2] = True
    kept[2, ::3] = True
    masked = x.masked_fill(~kept, -INF)
    y, dx = backward(masked, dy)
    assert (y[~kept] == 0).all()
    assert (dx[~kept] == 0).all()
    assert y[0, -1] == 1
    for row in range(3):
        alone = torch.softmax(x[row, kept[row]].double(), -1)
        torch.testing.assert_close(y[row, kept[row]].double(), alone, rtol=1e-5, atol=1e-8)


@each_width
@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=["nan", "inf", "all-minus-inf"])
def test_bad_row_stays_alone(N, bad):
    """NaN as a whole, like that of torch; its neighbours keep their bits."""
    x, dy = new().normal(5, N), new(seed=1).normal(5, N)
    plain = backward(x, dy)
    x[2, slice(None) if bad == -INF else N - 2] = bad
    others = torch.tensor([0, 1, 3, 4], device=x.device)
    for a, b in zip(plain, backward(x, dy), strict=True):
        assert b[2].isnan().all()
        assert same_bits(a[others], b[others])
    assert torch.softmax(x, -1)[2].isnan().all()


def test_more_wide_rows_than_programs():
    """Each has the bits that it has alone."""
    x, dy = new().normal(8, 70_001), new(seed=1).normal(8, 70_001)
    y, dx = backward(x, dy)
    for row in (0, 4, 7):
        one = slice(row, row + 1)
        for a, b in zip((y, dx), backward(x[one], dy[one]), strict=True):
            assert same_bits(a[one], b)


@pytest.mark.parametrize("shape", [(3, 0), (0,), (0, 5), (2, 0, 4)])
def test_nothing_to_do(shape):
    x = torch.empty(shape, device=device(), requires_grad=True)
    for dim in range(-1, x.ndim - 1):
        y = softmax(x, dim)
        assert y.shape == x.shape
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("module", [Softmax(), Softmax(1), Softmax(dim=-2)], ids=repr)
def test_module_is_the_function(module):
    x = new().normal(2, 3, 30)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(twin(x), softmax(x, module.dim))
        assert repr(twin) == repr(torch.nn.Softmax(module.dim))
        assert isinstance(twin, torch.nn.Softmax)
        assert twin.state_dict() == {}
    assert Softmax().dim == -1
    with pytest.raises(TypeError, match="must be an integer"):
        Softmax(None)(x)
