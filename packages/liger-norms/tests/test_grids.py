"""More rows, groups or channels than a grid may have programs beyond its first dimension."""

import pytest
import torch
from liger_core.kernels import sum_partials
from liger_norms import group_norm, modulated_rms_norm

MANY = 2**16 + 1
pytestmark = pytest.mark.gpu


def test_sum_of_many_groups():
    x = torch.randn(MANY, 2, 16, device="cuda")
    torch.testing.assert_close(sum_partials(x, torch.float32), x.sum(1))


def test_wide_rows_that_are_modulated_each():
    N = 16640
    x, dy = torch.randn(2, MANY, 1, N, device="cuda", dtype=torch.bfloat16)
    scale = torch.randn(MANY, 1, N, device="cuda", dtype=torch.bfloat16).mul_(0.1).requires_grad_()
    y = modulated_rms_norm(x, scale)
    (found,) = torch.autograd.grad(y, scale, dy)
    at = slice(MANY - 3, MANY)
    rows = x[at].double()
    expected = dy[at].double() * rows / rows.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(found[at].double(), expected, rtol=1e-2, atol=1e-2)


def test_many_channels_of_a_group():
    x = torch.randn(1, MANY, 4100, device="cuda", dtype=torch.bfloat16)
    y = group_norm(x, 1)
    at = slice(MANY - 3, MANY)
    torch.testing.assert_close(y[:, at], x[:, at], rtol=2e-2, atol=2e-2)
