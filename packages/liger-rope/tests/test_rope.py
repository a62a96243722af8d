"""rope beyond the generic suite: what a rotation keeps, strides, gradients of what is used."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_rope import rope


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def tables(positions, R, dtype=torch.float32):
    """cos, sin [B, T, R] of a model: angle = position * 10000^(-2 i / R), both halves alike."""
    positions = positions.to(device(), torch.float64)
    frequencies = 10_000.0 ** (-torch.arange(0, R, 2, device=device(), dtype=torch.float64) / R)
    angles = (positions[..., None] * frequencies).repeat(*[1] * positions.ndim, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def angles_of(x, R):
    """The rotated dimensions of x [..., D] as complex numbers [..., R / 2]."""
    x = x.double()
    return torch.complex(x[..., : R // 2], x[..., R // 2 : R])


def transformers(x, cos, sin, unsqueeze_dim=1):
    """apply_rotary_pos_emb of transformers, which also serves partial widths as its models do."""
    cos, sin, R = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim), cos.shape[-1]
    rotary, rest = x[..., :R], x[..., R:]
    half = torch.cat((-rotary[..., R // 2 :], rotary[..., : R // 2]), dim=-1)
    return torch.cat(((rotary * cos) + (half * sin), rest), dim=-1)


@pytest.mark.parametrize("R", [32, 12, 2])
def test_rotation_keeps_norms_and_passes_the_rest(R):
    """Each pair is multiplied by exp(i angle); dimensions beyond R keep their bits."""
    q, k = new().normal(2, 4, 7, 32), new(seed=1).normal(2, 2, 7, 32)
    positions = torch.arange(7)[None]
    cos, sin = tables(positions, R)
    turn = torch.complex(*(t[:, None, :, : R // 2].double() for t in (cos, sin)))
    for x, y in zip((q, k), rope(q, k, cos, sin), strict=True):
        torch.testing.assert_close(angles_of(y, R), angles_of(x, R) * turn, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
        assert same_bits(y[..., R:], x[..., R:])


def test_position_zero_is_the_identity():
    q, k = new(torch.bfloat16).normal(1, 3, 1, 16), new(torch.bfloat16, 1).normal(1, 2, 1, 16)
    for x, y in zip((q, k), rope(q, k, *tables(torch.zeros(1, 1), 16)), strict=True):
        assert same_bits(x, y)
        assert x.data_ptr() != y.data_ptr()


def test_only_the_distance_counts():
    """<rope(q, m), rope(k, n)> depends on m - n; turning by a, then by b, is turning by a + b."""
    q, k = new().normal(1, 2, 1, 24).expand(5, -1, -1, -1), new(seed=1).normal(1, 2, 1, 24)
    m, n = torch.tensor([[9.0], [109.0], [12.0], [2009.0], [4.0]]), 5.0
    q_m, _ = rope(q, None, *tables(m, 24))
    k_n, _ = rope(k.expand(5, -1, -1, -1), None, *tables(m - 9.0 + n, 24))
    products = (q_m * k_n).sum(-1)
    torch.testing.assert_close(products, products[:1].expand(5, -1, -1), rtol=1e-5, atol=1e-5)
    twice, _ = rope(rope(q, None, *tables(m, 24))[0], None, *tables(m + 3.0, 24))
    torch.testing.assert_close(
        twice, rope(q, None, *tables(2 * m + 3.0, 24))[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("R", [16, 10])
def test_backward_is_the_inverse(R):
    """With tables of a model the gradient that comes in for y = q gives q back; so does -sin."""
    q, k = (new(seed=i).normal(2, 3, 5, 16).requires_grad_() for i in range(2))
    cos, sin = tables(torch.arange(5)[None], R)
    y = rope(q, k, cos, sin)
    for x, grad in zip((q, k), torch.autograd.grad(y, (q, k), y), strict=True):
        torch.testing.assert_close(grad, x.detach(), rtol=1e-5, atol=1e-6)
    back = rope(y[0].detach(), y[1].detach(), cos, -sin)
    for x, z in zip((q, k), back, strict=True):
        torch.testing.assert_close(z, x.detach(), rtol=1e-5, atol=1e-6)


def test_backward_is_the_transpose_for_any_tables():
    """<y, J x> = <J^T y, x> where the halves of cos and sin differ."""
    q, dy = new().normal(2, 3, 5, 16).requires_grad_(), new(seed=1).normal(2, 3, 5, 16)
    cos, sin = new(seed=2).normal(2, 5, 12), new(seed=3).normal(2, 5, 12)
    (dq,) = torch.autograd.grad(rope(q, None, cos, sin)[0], q, dy)
    x = new(seed=4).normal(2, 3, 5, 16)
    forward = (rope(x, None, cos, sin)[0] * dy).double().sum()
    torch.testing.assert_close((x * dq).double().sum(), forward, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("table_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_bf16_is_rounded_once(table_dtype):
    q, k = new(torch.bfloat16).normal(2, 4, 9, 32), new(torch.bfloat16, 1).normal(2, 2, 9, 32)
    cos, sin = tables(torch.arange(9)[None], 24, table_dtype)
    for x, y in zip((q, k), rope(q, k, cos, sin), strict=True):
        assert y.dtype == torch.bfloat16
        truth = transformers(x.double(), cos.double(), sin.double()).bfloat16()
        assert (y != truth).float().mean() < 1e-2
        torch.testing.assert_close(y, truth, rtol=2.0**-7, atol=1e-5)


def fused(q, k, cos, sin):
    """q and k as parts of one projection, tokens before heads in memory."""
    B, HQ, T, D = q.shape
    qkv = torch.cat((q, k, k), dim=1).transpose(1, 2).reshape(B, T, -1)
    q, k = qkv[..., : HQ * D], qkv[..., HQ * D : (HQ + k.shape[1]) * D]
    return rope(*(x.view(B, T, -1, D).transpose(1, 2) for x in (q, k)), cos, sin)


def tokens_first(q, k, cos, sin):
    q, k = rope(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    return q.transpose(1, 2), k.transpose(1, 2)


def one_by_one(q, k, cos, sin):
    return rope(q, None, cos, sin)[0], rope(k, None, cos, sin)[0]


def tables_of_a_batch(q, k, cos, sin):
    return rope(q, k, *(t.expand(len(q), -1, -1) for t in (cos, sin)))


def tables_written_out(q, k, cos, sin):
    return rope(q, k, *(t.repeat(len(q), 1, 1) for t in (cos, sin)))


def tables_of_two_strides(q, k, cos, sin):
    """sin as a part of a longer cache with wider rows."""
    return rope(
        q,
        k,
        cos,
        torch.cat((sin, sin, sin), dim=-1).repeat(1, 2, 1)[:, : q.shape[2], : cos.shape[-1]],
    )


def tables_transposed(q, k, cos, sin):
    return rope(q, k, *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (cos, sin)))


@pytest.mark.parametrize("R", [20, 8])
@pytest.mark.parametrize(
    "layout",
    [
        fused,
        tokens_first,
        one_by_one,
        tables_of_a_batch,
        tables_written_out,
        tables_of_two_strides,
        tables_transposed,
    ],
)
def test_layouts_agree(layout, R):
    """The same bits, forward and backward, wherever q, k and the tables lie."""
    q, k = (
        new().normal(2, 6, 5, 20).requires_grad_(),
        new(seed=1).normal(2, 3, 5, 20).requires_grad_(),
    )
    cos, sin = new(seed=2).normal(1, 5, R), new(seed=3).normal(1, 5, R)
    dy = new(seed=4).normal(2, 6, 5, 20), new(seed=5).normal(2, 3, 5, 20)
    plain, other = rope(q, k, cos, sin), layout(q, k, cos, sin)
    for a, b in zip(plain, other, strict=True):
        assert same_bits(a, b)
    for a, b in zip(
        torch.autograd.grad(plain, (q, k), dy), torch.autograd.grad(other, (q, k), dy), strict=True
    ):
        assert same_bits(a, b)


def test_every_row_of_a_batch_has_its_positions():
    q, k = new().normal(3, 4, 6, 16), new(seed=1).normal(3, 1, 6, 16)
    cos, sin = tables(torch.arange(18).reshape(3, 6), 16)
    q_all, k_all = rope(q, k, cos, sin)
    for b in range(3):
        q_b, k_b = rope(q[b : b + 1], k[b : b + 1], cos[b : b + 1], sin[b : b + 1])
        assert same_bits(q_all[b], q_b[0])
        assert same_bits(k_all[b], k_b[0])
    # decoding: one token at a time, tables cut from a cache
    for t in range(6):
        q_t, _ = rope(q[:, :, t : t + 1], None, cos[:, t : t + 1], sin[:, t : t + 1])
        assert same_bits(q_all[:, :, t], q_t[:, :, 0])


@pytest.mark.parametrize("heads", [1, 2, 5, 40])
def test_heads_do_not_mix(heads):
    """Any number of heads, more than a tile holds too, and expanded ones."""
    q, k = new().normal(1, heads, 3, 64), new(seed=1).normal(1, 1, 3, 64).expand(1, heads, 3, 64)
    cos, sin = tables(torch.arange(3)[None], 64)
    q_all, k_all = rope(q, k, cos, sin)
    k_one = rope(q, k[:, :1], cos, sin)[1]
    for h in range(heads):
        assert same_bits(q_all[:, h : h + 1], rope(q[:, h : h + 1], None, cos, sin)[0])
        assert same_bits(k_all[:, h : h + 1], k_one)


@pytest.mark.parametrize("used", ["q", "k"])
@pytest.mark.parametrize("frozen", [None, "q", "k"])
def test_gradients_of_what_is_used(used, frozen):
    """One output may be unused, one input frozen: its output then requires no gradient."""
    inputs = {"q": new().normal(2, 3, 4, 8), "k": new(seed=1).normal(2, 1, 4, 8)}
    cos, sin = tables(torch.arange(4)[None], 8)
    for name, x in inputs.items():
        x.requires_grad_(name != frozen)
    outputs = dict(zip(("q", "k"), rope(*inputs.values(), cos, sin), strict=True))
    assert {n: y.requires_grad for n, y in outputs.items()} == {n: n != frozen for n in inputs}
    if frozen == used:
        return
    outputs[used].sum().backward()
    assert frozen is None or inputs[frozen].grad is None
    ones = torch.ones_like(inputs[used])
    expected = rope(ones, None, cos, -sin)[0]
    torch.testing.assert_close(inputs[used].grad, expected, rtol=1e-5, atol=1e-6)
    other = inputs["k" if used == "q" else "q"]
    assert other.grad is None or not other.grad.any()


def test_inputs_are_not_rotated_in_place():
    """q and k are used before and after by ops that keep them; the gradients are those of fp64."""
    q, k = (new(seed=i).normal(1, 2, 4, 8) for i in range(2))
    cos, sin = tables(torch.arange(4)[None], 8)

    def loss(q, k, function):
        a, b = q * 1, k * 1
        q_r, k_r = function(a, b)
        return (a * a + q_r * a).sum() + (b * b * k_r).sum()

    leaves = [t.clone().requires_grad_() for t in (q, k)]
    loss(*leaves, lambda a, b: rope(a, b, cos, sin)).backward()
    exact = [t.double().requires_grad_() for t in (q, k)]
    loss(
        *exact, lambda a, b: [transformers(x, cos.double(), sin.double()) for x in (a, b)]
    ).backward()
    for leaf, truth, before in zip(leaves, exact, (q, k), strict=True):
        torch.testing.assert_close(leaf.grad.double(), truth.grad, rtol=1e-5, atol=1e-5)
        assert same_bits(leaf.detach(), before)
