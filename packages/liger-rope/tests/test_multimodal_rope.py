"""multimodal_rope against the tables that Qwen-VL and GLM-4V models build, written out."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_rope import multimodal_rope, rope


def new(*shape, seed=0, dtype=torch.float32):
    return Builder(dtype, device(), seed).normal(*shape)


def chunked(freqs, sections):
    """Qwen2-VL: freqs [3, B, T, R / 2] -> [B, T, R / 2]."""
    parts = freqs.split(sections, dim=-1)
    return torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)


def cycled(freqs, sections):
    """Qwen3-VL: time, and over it height and width at every third place."""
    result = freqs[0].clone()
    for axis in (1, 2):
        places = slice(axis, 3 * sections[axis], 3)
        result[..., places] = freqs[axis, ..., places]
    return result


def halves(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


CASES = [
    (chunked, [2, 3, 3], False),
    (chunked, [0, 8, 0], False),
    (chunked, [8, 0, 0], False),
    (cycled, [4, 2, 2], True),
    (cycled, [2, 3, 3], True),
    (cycled, [1, 2, 5], True),
]


@pytest.mark.parametrize(("build", "sections", "interleaved"), CASES)
def test_parity_with_transformers(build, sections, interleaved):
    """The bits of tables built beforehand, both halves alike, and of the formula on them."""
    q, k = new(2, 4, 5, 20, dtype=torch.bfloat16), new(2, 2, 5, 20, seed=1, dtype=torch.bfloat16)
    freqs = new(3, 2, 5, 8, seed=2)
    cos, sin = (torch.cat((t, t), dim=-1).bfloat16() for t in (freqs.cos(), freqs.sin()))
    options = {"interleaved": interleaved, "rounding": "each"}
    ours = multimodal_rope(q, k, cos, sin, sections, **options)
    built = build(freqs, sections)
    built_cos, built_sin = (
        torch.cat((t, t), dim=-1).bfloat16() for t in (built.cos(), built.sin())
    )
    for x, y in zip((q, k), ours, strict=True):
        rotary, c, s = x[..., :16], built_cos.unsqueeze(1), built_sin.unsqueeze(1)
        expected = torch.cat((rotary * c + halves(rotary) * s, x[..., 16:]), dim=-1)
        assert same_bits(y, expected)


@pytest.mark.parametrize(("build", "sections", "interleaved"), [CASES[0], CASES[5]])
@pytest.mark.parametrize("table_layout", ["half", "interleaved", "pairs"])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_tables_of_any_layout(build, sections, interleaved, table_layout, layout):
    """The same as rope on tables built beforehand, forward and backward, any strides."""
    q = new(2, 4, 5, 20).requires_grad_()
    widen = {
        "half": lambda t: torch.cat((t, 2 * t), dim=-1),
        "interleaved": lambda t: torch.stack((t, 2 * t), dim=-1).flatten(-2),
        "pairs": lambda t: t,
    }[table_layout]
    cos, sin = new(3, 2, 5, 8, seed=2), new(3, 2, 5, 8, seed=3)
    options = {"layout": layout, "table_layout": table_layout}
    tables = (widen(build(t, sections)) for t in (cos, sin))
    expected, _ = rope(q, None, *tables, **options)
    (dq,) = torch.autograd.grad(expected, q, q.detach())
    for given in (widen(t) for t in (cos, cos.transpose(1, 2).contiguous().transpose(1, 2))):
        y, none = multimodal_rope(
            q, None, given, widen(sin), tuple(sections), interleaved=interleaved, **options
        )
        assert none is None
        assert same_bits(y, expected)
        assert same_bits(torch.autograd.grad(y, q, q.detach())[0], dq)


def test_text_alone_is_rope():
    """Where the three positions agree, as in text, the sections do not matter."""
    q, k = new(2, 4, 5, 16), new(2, 2, 5, 16, seed=1)
    cos, sin = new(1, 5, 16, seed=2), new(1, 5, 16, seed=3)
    expected = rope(q, k, cos, sin)
    for _, sections, interleaved in CASES:
        y = multimodal_rope(
            q, k, *(t.expand(3, 1, 5, 16) for t in (cos, sin)), sections, interleaved=interleaved
        )
        assert all(same_bits(a, b) for a, b in zip(y, expected, strict=True))


def test_tokens_first_and_without_a_batch():
    q, k = new(1, 5, 4, 16), new(1, 5, 2, 16, seed=1)
    cos, sin = new(3, 5, 16, seed=2), new(3, 5, 16, seed=3)
    heads_first = multimodal_rope(
        q.transpose(1, 2), k.transpose(1, 2), cos[:, None], sin[:, None], (2, 3, 3)
    )
    for a, b, c, d in zip(
        heads_first,
        multimodal_rope(q, k, cos[:, None], sin[:, None], (2, 3, 3), unsqueeze_dim=2),
        multimodal_rope(q, k, cos, sin, (2, 3, 3)),
        multimodal_rope(q[0], k[0], cos, sin, (2, 3, 3)),
        strict=True,
    ):
        for other in (b, c, d[None]):
            assert same_bits(a.transpose(1, 2), other)
