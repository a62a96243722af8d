"""Products with a head whose classes are no multiple of eight."""

import pytest
import torch
from liger_losses import head_products
from liger_losses.head_products import HeadProducts, logits_buffer
from torch.utils._python_dispatch import TorchDispatchMode

ROWS, H = 6, 16


class Products(TorchDispatchMode):
    """Notes the operands and the result of every matrix product."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm"):
            self.seen.append((*args[-2:], kwargs["out"]))
        return func(*args, **kwargs or {})


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(head_products, "use_kernels", lambda x: True)
    monkeypatch.setattr(head_products, "_MANY", 0)


def head(V, dtype, bias):
    torch.manual_seed(V)
    x, W = torch.randn(ROWS, H).to(dtype), torch.randn(V, H).to(dtype)
    return x, W, torch.randn(V).to(dtype) if bias else None


def run(x, W, b, sums):
    """z, dx and the sum of dW of the same rows twice, where z takes the part of dz."""
    products = HeadProducts(x, W, b)
    z = products.logits(x, logits_buffer(len(x), len(W), x))
    dx = products.input_grad(z, torch.empty_like(x))
    dW = torch.empty(W.shape, dtype=sums)
    products.add_weight_grad(z, x, dW, first=True)
    products.add_weight_grad(z, x, dW, first=False)
    return z, dx, dW


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("V", [0, 1, 7, 8, 9, 21, 64])
@pytest.mark.parametrize(
    ("dtype", "sums"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_products(V, dtype, sums, bias):
    x, W, b = head(V, dtype, bias)
    z, dx, dW = run(x, W, b, sums)
    exact = x.double() @ W.double().T + (0 if b is None else b.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(z.double(), exact, rtol=eps, atol=eps)
    exact = z.double() @ W.double()
    # what a product rounds, and an input of the other
    atol = eps * exact.abs().max().item() if V else 0.0
    torch.testing.assert_close(dx.double(), exact, rtol=eps, atol=atol)
    exact = 2 * z.double().T @ x.double()
    eps = max(torch.finfo(sums).eps, 1e-6 if sums == torch.float32 else 0.0)
    torch.testing.assert_close(dW.double(), exact, rtol=2 * eps, atol=eps * (V > 0) * 8)


@pytest.mark.parametrize("V", [7, 21, 64])
def test_operands_are_aligned(V):
    x, W, _ = head(V, torch.bfloat16, False)
    with Products() as products:
        run(x, W, None, torch.bfloat16)
    assert len(products.seen) >= 4
    for operands in products.seen:
        for t in operands:
            rows = t if t.stride(-1) == 1 else t.t()
            assert rows.stride(-1) == 1
            if rows.numel():
                assert not rows.stride(0) % 8
                assert not rows.storage_offset() % 8
            # the rows of x are as many as they are
            assert all(n == ROWS or not n % 8 for n in t.shape)


def test_only_where_it_pays(monkeypatch):
    x, W, _ = head(21, torch.bfloat16, False)
    assert logits_buffer(2, 21, x).stride() == (32, 1)
    assert HeadProducts(x, W, None).even == 16
    assert logits_buffer(2, 21, x.float()).stride() == (21, 1)
    assert HeadProducts(x.float(), W.float(), None).even == 21
    assert logits_buffer(2, 24, x).stride() == (32, 1)
    assert logits_buffer(2, 32, x).stride() == (32, 1)
    for name, value in (("_MANY", 22), ("use_kernels", lambda x: False)):
        with monkeypatch.context() as patch:
            patch.setattr(head_products, name, value)
            assert logits_buffer(2, 21, x).stride() == (21, 1)
            assert HeadProducts(x, W, None).even == 21


def test_rows_that_are_not_numbers_stay_alone():
    x, W, b = head(21, torch.bfloat16, True)
    x[1, 2] = float("inf")
    z, dx, dW = run(x, W, b, torch.bfloat16)
    assert z.isfinite().all(1).tolist() == [i != 1 for i in range(ROWS)]
    assert dx.isfinite().all(1).tolist() == [i != 1 for i in range(ROWS)]
    assert not dW.isfinite().all()
