"""Device functions that kernels share, beside PyTorch in fp64."""

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.kernels import column_sum, log2
from liger_core.lang import tl, triton
from liger_core.launch import launch
from liger_core.testing.running import device


@triton.jit
def _log2_kernel(X, Y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(Y + at, log2(tl.load(X + at, mask=at < n, other=1.0)), mask=at < n)


def test_log2_keeps_its_digits_near_one_and_far_from_it():
    steps = torch.arange(1, 24, dtype=torch.float32)
    far = torch.linspace(-120.0, 120.0, 200).exp2()
    x = torch.cat([torch.ones(1), 1.0 - 0.5**steps, 1.0 + 0.5**steps, far]).to(device())
    if not use_kernels(x):
        pytest.skip("a device function needs a kernel")
    y = torch.empty_like(x)
    launch(_log2_kernel, (1,), x, y, x.numel(), BLOCK=256)
    torch.testing.assert_close(y.double(), x.double().log2(), rtol=4e-7, atol=0.0)


@pytest.mark.parametrize("shape", [(1, 1), (300, 7), (33, 520), (0, 4), (4, 0)])
@pytest.mark.parametrize(
    ("of", "dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_column_sum_is_rounded_once(shape, of, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape).to(device(), of)
    total = column_sum(x, dtype)
    assert total.dtype == dtype
    assert total.shape == shape[1:]
    # beyond the rounding of the sum itself, no more than fp32 loses
    lost = 1e-6 if dtype != torch.float64 else 1e-14
    exact = x.double().sum(0)
    rtol = torch.finfo(dtype).eps / 2 + lost
    torch.testing.assert_close(total.double(), exact, rtol=rtol, atol=lost * 20)


def test_column_sum_takes_any_strides():
    x = torch.randn(40, 12, device=device())
    for view in (x.t(), x[:, ::2], x[:1].expand(9, 12), x[0, :1].expand(5, 3)):
        torch.testing.assert_close(column_sum(view, x.dtype), view.sum(0))
