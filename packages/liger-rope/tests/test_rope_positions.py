"""rope with position_ids, and of queries without a batch."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_rope import rope


def new(*shape, seed=0, dtype=torch.float32):
    return Builder(dtype, device(), seed).normal(*shape)


def ids(*rows):
    return torch.tensor(rows, device=device())


POSITIONS = ids([0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "options", [{}, {"layout": "interleaved", "trailing": True}, {"table_layout": "pairs"}]
)
def test_positions_are_rows_of_the_tables(dtype, options):
    """As cos[position_ids], forward and backward, for positions of any strides."""
    q, k = new(2, 3, 6, 16).requires_grad_(), new(2, 1, 6, 16, seed=1).requires_grad_()
    cos, sin = new(7, 8, seed=2), new(7, 8, seed=3)
    positions = POSITIONS.to(dtype)
    ours = rope(q, k, cos, sin, position_ids=positions, **options)
    rows = cos[positions.long()], sin[positions.long()]
    theirs = rope(q, k, *rows, **options)
    grads = [torch.autograd.grad(y, (q, k), (q.detach(), k.detach())) for y in (ours, theirs)]
    for a, b in zip((*ours, *grads[0]), (*theirs, *grads[1]), strict=True):
        assert same_bits(a, b)
    for strided in (positions.t().contiguous().t(), positions.repeat_interleave(2, 1)[:, ::2]):
        other = rope(q, k, cos, sin, position_ids=strided, **options)
        assert all(same_bits(a, b) for a, b in zip(ours, other, strict=True))


def test_one_row_of_positions_serves_a_batch():
    q, cos, sin = new(2, 3, 6, 8), new(7, 8, seed=1), new(7, 8, seed=2)
    expected, _ = rope(q, None, cos, sin, position_ids=POSITIONS[:1].expand(2, 6))
    assert same_bits(expected, rope(q, None, cos, sin, position_ids=POSITIONS[:1])[0])
    tokens = q.transpose(1, 2)
    flat, _ = rope(tokens, None, cos, sin, position_ids=POSITIONS[0])
    assert same_bits(expected, flat.transpose(1, 2))


def test_packed_sequences_are_separate_ones():
    """Positions that start anew give the bits, and gradients, of sequences on their own."""
    q, k = new(1, 4, 6, 16).requires_grad_(), new(1, 2, 6, 16, seed=1).requires_grad_()
    cos, sin = new(9, 16, seed=2), new(9, 16, seed=3)
    packed = rope(q, k, cos, sin, position_ids=ids([0, 1, 2, 3, 0, 1]))
    dq, dk = torch.autograd.grad(packed, (q, k), [y.detach() for y in packed])
    for part in (slice(0, 4), slice(4, 6)):
        x, z = (t[:, :, part].detach().requires_grad_() for t in (q, k))
        n = x.shape[2]
        alone = rope(x, z, cos[None, :n], sin[None, :n])
        dx, dz = torch.autograd.grad(alone, (x, z), [y.detach() for y in alone])
        for whole, single in ((packed[0], alone[0]), (packed[1], alone[1]), (dq, dx), (dk, dz)):
            assert same_bits(whole[:, :, part], single)


@pytest.mark.parametrize("outside", [-1, 5, 6, 2**31, -(2**31) - 7, 2**62, -(2**63)])
def test_a_row_that_does_not_exist_is_nan(outside):
    """Forward and backward, for that token alone; dimensions that pass through keep their bits."""
    q = new(2, 3, 3, 16).requires_grad_()
    cos, sin = new(5, 12, seed=1), new(5, 12, seed=2)
    positions = ids([0, 4, 1], [2, outside, 3])
    y, _ = rope(q, None, cos, sin, position_ids=positions)
    (dq,) = torch.autograd.grad(y, q, torch.ones_like(y))
    good, _ = rope(q, None, cos, sin, position_ids=positions.where(positions == 2, 0).clamp(0, 4))
    for result in (y, dq):
        assert result[1, :, 1, :12].isnan().all()
        assert result.isnan().sum() == 3 * 12
    assert same_bits(y[..., 12:], q.detach()[..., 12:])
    assert same_bits(y[1, :, 0], good.detach()[1, :, 0])


def test_vision_axes_side_by_side():
    """Queries [T, H, D], fp32 tables [T, R] from height and width: as in Qwen2-VL, to the bit."""
    place = torch.arange(6, device=device())
    turn = 0.3 ** torch.arange(4.0, device=device())
    angle = torch.cat(((place // 3)[:, None] * turn, (place % 3)[:, None] * turn), dim=-1)
    cos, sin = (torch.cat((t, t), dim=-1) for t in (angle.cos(), angle.sin()))
    q, k = new(6, 4, 16, dtype=torch.bfloat16), new(6, 2, 16, seed=1, dtype=torch.bfloat16)
    for x, y in zip((q, k), rope(q, k, cos, sin, rounding="each"), strict=True):
        half = torch.cat((-x[..., 8:], x[..., :8]), dim=-1).float()
        expected = (x.float() * cos.unsqueeze(-2)) + (half * sin.unsqueeze(-2))
        assert same_bits(y, expected.bfloat16())
    # heads first, with and without a batch (Pixtral's unsqueeze_dim), are the same
    for a, b in zip(rope(q, k, cos, sin), (q, k), strict=True):
        x = b.transpose(0, 1)
        assert same_bits(a.transpose(0, 1), rope(x, None, cos, sin, unsqueeze_dim=0)[0])
        assert same_bits(a.transpose(0, 1), rope(x[None], None, cos, sin, unsqueeze_dim=0)[0][0])
        assert same_bits(a, rope(b[None], None, cos, sin)[0][0])


def test_vision_axes_one_after_the_other():
    """Each part of a head rotated by its own axis, as in Gemma 4: parts are a batch, in a view."""
    q = new(5, 3, 16).requires_grad_()
    cos, sin = new(5, 16, seed=1), new(5, 16, seed=2)
    parts = q.unflatten(-1, (2, 8)).movedim(-2, 0)
    tables = (t.unflatten(-1, (2, 8)).movedim(-2, 0) for t in (cos, sin))
    y = rope(parts, None, *tables, unsqueeze_dim=2)[0].movedim(0, -2).flatten(-2)
    pieces = [
        rope(x, None, c, s)[0]
        for x, c, s in zip(q.split(8, -1), cos.split(8, -1), sin.split(8, -1), strict=True)
    ]
    assert same_bits(y, torch.cat(pieces, dim=-1))
    (dq,) = torch.autograd.grad(y, q, q.detach())
    (expected,) = torch.autograd.grad(torch.cat(pieces, dim=-1), q, q.detach())
    assert same_bits(dq, expected)


def test_gradients_without_a_batch():
    """One of q and k frozen, one of the outputs unused."""
    cos, sin = new(4, 8, seed=2), new(4, 8, seed=3)
    for frozen in ("q", "k"):
        q, k = new(4, 3, 8).requires_grad_(frozen != "q"), new(4, 1, 8, seed=1)
        k.requires_grad_(frozen != "k")
        y = rope(q, k, cos, sin)
        assert [t.requires_grad for t in y] == [frozen != "q", frozen != "k"]
        leaf, out = (k, y[1]) if frozen == "q" else (q, y[0])
        (grad,) = torch.autograd.grad(out, leaf, out.detach())
        batched = rope(leaf[None].detach().requires_grad_(), None, cos, sin)[0]
        assert same_bits(batched[0].detach(), out.detach())
        assert grad.shape == leaf.shape
        assert grad.isfinite().all()
