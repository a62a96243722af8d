"""rope against the functions of transformers models, written out; what every convention keeps."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_rope import rope

BF16 = torch.bfloat16


def halves(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def neighbours(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def plain(turned, *, fp32=False, repeat=False, first_half=False, trailing=False):
    """x * cos + turned(x) * sin on as many dimensions as cos has columns."""

    def formula(x, cos, sin):
        if first_half:
            cos, sin = (t[..., : t.shape[-1] // 2] for t in (cos, sin))
        if repeat:
            cos, sin = (t.repeat_interleave(2, dim=-1) for t in (cos, sin))
        cos, sin, R, D = cos.unsqueeze(1), sin.unsqueeze(1), cos.shape[-1], x.shape[-1]
        before, rotary, after = x.split((D - R, R, 0) if trailing else (0, R, D - R), dim=-1)
        wide = rotary.float() if fp32 else rotary
        y = (wide * cos) + (turned(wide) * sin)
        return torch.cat((before, y.to(x.dtype), after), dim=-1)

    return formula


def gpt_oss(x, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def privacy_filter(x, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x[..., ::2], x[..., 1::2]
    y = first * cos - second * sin, second * cos + first * sin
    return torch.stack(y, dim=-1).flatten(-2)


def deepseek_v3(x, cos, sin):
    cos, sin = (t[..., : t.shape[-1] // 2].unsqueeze(1) for t in (cos, sin))
    first, second = x[..., ::2], x[..., 1::2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def gptj(x, cos, sin):
    """On [B, T, H, D], sine first."""
    sin, cos = (t[:, :, None, :].repeat_interleave(2, dim=3) for t in (sin, cos))
    x = x.transpose(1, 2)
    return ((x * cos) + (neighbours(x) * sin)).transpose(1, 2)


def joined(x):
    return torch.cat((x, x), dim=-1)


def repeated(x):
    return x.repeat_interleave(2, dim=-1)


EACH, INTERLEAVED = {"rounding": "each"}, {"layout": "interleaved"}
GLM = {**INTERLEAVED, "table_layout": "half"}
PAIRS = {**INTERLEAVED, "table_layout": "pairs"}

# name: formula, what it makes of the angles [B, T, R / 2], dtype of cos and sin, options
MODELS = {
    "llama": (plain(halves), joined, BF16, EACH),
    "gpt_neox": (plain(halves), joined, BF16, EACH),
    "olmo": (plain(halves), joined, torch.float32, EACH),
    "modernbert": (plain(halves, fp32=True), joined, BF16, {}),
    "modernbert_fp32": (plain(halves, fp32=True), joined, torch.float32, EACH),
    "nanochat": (plain(lambda x: -halves(x)), joined, BF16, {**EACH, "inverse": True}),
    "gpt_oss": (gpt_oss, lambda x: x, BF16, {**EACH, "table_layout": "pairs"}),
    "blt": (plain(neighbours), repeated, BF16, {**EACH, **INTERLEAVED}),
    "cohere": (plain(neighbours, fp32=True), repeated, BF16, INTERLEAVED),
    "glm": (plain(neighbours, repeat=True, first_half=True), joined, BF16, {**EACH, **GLM}),
    "ernie4_5": (
        plain(neighbours, fp32=True, repeat=True, first_half=True),
        joined,
        torch.float32,
        {**EACH, **GLM},
    ),
    "gptj": (gptj, lambda x: x, BF16, {**EACH, **PAIRS}),
    "privacy_filter": (privacy_filter, lambda x: x, BF16, {**EACH, **PAIRS}),
    "deepseek_v3": (deepseek_v3, joined, BF16, {**EACH, **INTERLEAVED, "out_layout": "half"}),
    "deepseek_v4": (
        plain(neighbours, fp32=True, repeat=True, trailing=True),
        lambda x: x,
        BF16,
        {**PAIRS, "trailing": True},
    ),
}
# they rotate all dimensions
FULL = ("gpt_oss", "gptj", "privacy_filter", "deepseek_v3")


def angles(T, R, seed=0):
    """[2, T, R / 2] for two sequences of a batch."""
    return Builder(torch.float64, device(), seed).uniform(2, T, R // 2, high=6.0)


def heads(n, D, dtype=BF16, seed=0):
    return Builder(dtype, device(), seed).normal(2, n, 7, D)


def prepared(name, D=24):
    formula, widened, dtype, options = MODELS[name]
    turn = angles(7, D if name in FULL or name == "llama" else 16)
    return formula, widened(turn.cos()).to(dtype), widened(turn.sin()).to(dtype), options


@pytest.mark.parametrize("name", MODELS)
def test_bits_of_transformers(name):
    """bf16 q and k in the tables' dtypes of the model: the very bits of its function."""
    formula, cos, sin, options = prepared(name)
    q, k = heads(4, 24), heads(2, 24, seed=1)
    for x, y in zip((q, k), rope(q, k, cos, sin, **options), strict=True):
        assert same_bits(y, formula(x, cos, sin).to(BF16))
        assert not same_bits(y, x)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name][2] == BF16])
def test_gradient_bits_of_transformers(name):
    formula, cos, sin, options = prepared(name)
    q, dy = heads(3, 24).requires_grad_(), heads(3, 24, seed=1)
    (ours,) = torch.autograd.grad(rope(q, None, cos, sin, **options)[0], q, dy)
    (theirs,) = torch.autograd.grad(formula(q, cos, sin), q, dy)
    assert same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("table_dtype", [torch.float32, BF16, torch.float16])
def test_each_rounding_in_other_dtypes(dtype, table_dtype):
    """Products and sum have the promoted dtype, which no fused multiply-add may widen."""
    q, turn = heads(3, 32, dtype), angles(7, 32)
    cos, sin = joined(turn.cos()).to(table_dtype), joined(turn.sin()).to(table_dtype)
    y, _ = rope(q, None, cos, sin, rounding="each")
    assert same_bits(y, plain(halves)(q, cos, sin).to(dtype))


@pytest.mark.parametrize("name", MODELS)
def test_every_convention_is_a_rotation(name):
    """Norms stay; the gradient and the opposite angle undo it; a product of q and k depends on the
    difference of their angles alone.
    """
    _, widened, _, options = MODELS[name]
    options = {key: value for key, value in options.items() if key != "rounding"}
    q, k = heads(3, 16, torch.float32).requires_grad_(), heads(3, 16, torch.float32, seed=1)
    a, b, shift = (angles(7, 16, seed=seed) for seed in range(3))
    close = {"rtol": 1e-5, "atol": 1e-5}

    def turned(x, angle, **changes):
        return rope(x, None, widened(angle.cos()), widened(angle.sin()), **(options | changes))[0]

    y = turned(q, a)
    torch.testing.assert_close(y.norm(dim=-1), q.norm(dim=-1), **close)
    (dq,) = torch.autograd.grad(y, q, y.detach())
    torch.testing.assert_close(dq, q.detach(), **close)
    layout = options.get("layout", "half")
    out_layout = options.get("out_layout", layout)
    back = turned(
        y,
        a,
        layout=out_layout,
        out_layout=layout,
        table_layout=options.get("table_layout", out_layout),
        inverse="inverse" not in options,
    )
    torch.testing.assert_close(back, q, **close)
    torch.testing.assert_close(
        (turned(q, a + shift) * turned(k, b + shift)).sum(-1), (y * turned(k, b)).sum(-1), **close
    )
