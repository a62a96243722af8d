"""complex_rope against the functions of Llama 4 and DeepSeek V2, written out, and against rope."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_rope import complex_rope, rope

BF16 = torch.bfloat16


def new(*shape, seed=0, dtype=torch.float32):
    return Builder(dtype, device(), seed).normal(*shape)


def turns(*shape, seed=5):
    """Numbers of modulus 1."""
    angle = new(*shape, seed=seed)
    return torch.polar(torch.ones_like(angle), angle)


def as_complex(x):
    return torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))


def llama4(x, freqs):
    """x [B, T, H, D], freqs [B, T, D / 2]"""
    return torch.view_as_real(as_complex(x) * freqs[:, :, None, :]).flatten(3).type_as(x)


def deepseek_v2(x, freqs):
    """x [B, H, T, D], freqs [B, T, D / 2]"""
    return torch.view_as_real(as_complex(x) * freqs.unsqueeze(1)).flatten(3).type_as(x)


def llama4_vision(x, freqs):
    """x [B, T, H, D], freqs [T, 1, D / 2]"""
    return (
        torch.view_as_real(as_complex(x) * freqs.view(1, x.shape[1], 1, -1)).flatten(3).type_as(x)
    )


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("formula", "freqs_shape", "options"),
    [
        (llama4, (5, 8), {"unsqueeze_dim": 2}),
        (deepseek_v2, (5, 8), {}),
        (llama4_vision, (5, 1, 8), {}),
    ],
)
def test_parity_with_transformers(formula, freqs_shape, options, batch, dtype):
    """Forward and backward. A complex product may be fused, so the last bit may differ."""
    vision = formula is llama4_vision
    freqs = turns(*freqs_shape) if vision else turns(batch, *freqs_shape)
    shapes = ((2, 4, 5, 16), (2, 1, 5, 16))
    if formula is not deepseek_v2:
        shapes = tuple((B, T, H, D) for B, H, T, D in shapes)
    q, k = (new(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes))
    ours = complex_rope(q, k, freqs.squeeze(1) if vision else freqs, **options)
    for x, y in zip((q, k), ours, strict=True):
        expected, dy = formula(x, freqs), x.detach().flip(-1)
        assert y.dtype == dtype
        rtol = 1e-6 if dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(y, expected, rtol=rtol, atol=1e-6)
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        (dx_expected,) = torch.autograd.grad(expected, x, dy)
        torch.testing.assert_close(dx, dx_expected, rtol=rtol, atol=1e-6)
        assert dtype == torch.float32 or (y != expected).float().mean() < 0.02


def test_real_and_imaginary_parts_are_cos_and_sin():
    q, k, freqs = new(2, 3, 4, 24), new(2, 1, 4, 24, seed=1), new(2, 4, 10, 2, seed=2)
    cos, sin = freqs.unbind(-1)
    options = {"layout": "interleaved", "table_layout": "pairs"}
    for a, b in zip(
        complex_rope(q, k, torch.view_as_complex(freqs)),
        rope(q, k, cos, sin, **options),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert same_bits(a[..., 20:], b[..., 20:])


@pytest.mark.parametrize(
    "view",
    [
        lambda freqs: freqs.conj().resolve_conj().conj(),
        lambda freqs: freqs.transpose(1, 2).contiguous().transpose(1, 2),
        lambda freqs: torch.stack((freqs, freqs), dim=-1)[..., 1],
        lambda freqs: freqs.expand(2, -1, -1),
        lambda freqs: freqs.repeat(1, 2, 1)[:, 4:],
    ],
    ids=["conjugate", "transposed", "strided", "expanded", "sliced"],
)
def test_freqs_of_any_form(view):
    q, freqs = new(2, 3, 4, 16), turns(1, 4, 8)
    y, other = complex_rope(q, None, freqs)[0], complex_rope(q, None, view(freqs))[0]
    torch.testing.assert_close(y, other, rtol=1e-6, atol=1e-6)


def test_the_conjugate_is_the_inverse_and_gives_the_gradient():
    q, freqs = new(2, 3, 4, 16).requires_grad_(), turns(1, 4, 8)
    y, none = complex_rope(q, None, freqs)
    assert none is None
    torch.testing.assert_close(y.norm(dim=-1), q.norm(dim=-1), rtol=1e-6, atol=0)
    back, _ = complex_rope(y, None, freqs.conj())
    torch.testing.assert_close(back, q, rtol=1e-5, atol=1e-6)
    dy = new(2, 3, 4, 16, seed=1)
    (dq,) = torch.autograd.grad(y, q, dy)
    torch.testing.assert_close(dq, complex_rope(dy, None, freqs.conj())[0], rtol=1e-6, atol=1e-6)
