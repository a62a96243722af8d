"""Rotary functions: which are recognised, and what is said of the others."""

import liger_hf
import liger_rope
import pytest
import torch
from families import build, only_row, tokens
from liger_hf.rotations import recognise
from torch import nn
from transformers.models.llama import modeling_llama


def attention(rotation, parameters="q, k, cos, sin, unsqueeze_dim=1"):
    """A module whose forward reaches a rotary function as a global."""
    names = [p.split("=")[0].strip() for p in parameters.split(",")]
    code = f"""
def apply_rotary({parameters}):
    return rotation({", ".join(names)})

class Attention(nn.Module):
    def forward(self, q, k, cos, sin):
        return apply_rotary(q, k, cos, sin)
"""
    scope = {"nn": nn, "rotation": rotation}
    exec(code, scope)
    return scope["Attention"]()


def turned(x, cos, sin, sign=1.0):
    first, second = x.chunk(2, dim=-1)
    return x * cos + sign * torch.cat((-second, first), dim=-1) * sin


@pytest.mark.parametrize(("sign", "form"), [(1, "rope half"), (-1, "rope half, opposite angle")])
def test_rotation(sign, form):
    layer = attention(
        lambda q, k, cos, sin, d: tuple(
            turned(x, cos.unsqueeze(d), sin.unsqueeze(d), sign) for x in (q, k)
        )
    )
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 1, 5, 8)
    cos, sin = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    expected = layer(q, k, cos, sin)
    (row,) = liger_hf.apply(layer, loss=False).rows
    assert row.form == form
    torch.testing.assert_close(layer(q, k, cos, sin), expected)


def test_unknown_rotations_are_refused():
    def scaled(q, k, cos, sin, d):
        return tuple(1.01 * turned(x, cos.unsqueeze(d), sin.unsqueeze(d)) for x in (q, k))

    row = only_row(attention(scaled), "rope")
    assert "apply_rotary is none of the rotations; closest is rope half, relative" in row.reason
    row = only_row(attention(scaled, "q, k, cos, sin, offset"), "rope")
    assert row.reason == "apply_rotary takes (q, k, cos, sin, offset)"


def test_global_replaced_between_two_applies_is_the_one_that_runs(monkeypatch):
    """Another library's attention, say, after a first model was patched."""
    from transformers.models.llama import modeling_llama

    def run(model):
        return model(input_ids=tokens()).logits

    first, model = (build("llama", attn_implementation="eager").eval() for _ in range(2))
    before = run(model)
    liger_hf.apply(first)
    attend = modeling_llama.eager_attention_forward

    def doubled(*args, **kwargs):
        output, weights = attend(*args, **kwargs)
        return 2.0 * output, weights

    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "eager_attention_forward", doubled)
        expected = run(model)
        assert not torch.allclose(expected, before)
        liger_hf.apply(model)
        torch.testing.assert_close(run(model), expected)
        layers = model.model.layers
        assert len({vars(x.self_attn)["forward"].__self__.function for x in layers}) == 1
    again = build("llama", attn_implementation="eager").eval()
    liger_hf.apply(again)
    torch.testing.assert_close(run(again), before)


def test_more_than_a_rotation_does():
    """Angles that are learnt, and options without a role: the model's own function does all."""
    calls = []

    def rotate(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, negate=False):
        calls.append(negate)
        sign = -1.0 if negate else 1.0
        rotated = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
        return tuple(sign * y for y in rotated)

    words, rotation, _ = recognise("rotate", rotate)
    assert words == "rope half"
    run = rotation.bind(liger_rope.rope, rotate)
    q, k, cos, sin = (torch.randn(2, 3, 5, 8), torch.randn(2, 1, 5, 8), *torch.randn(2, 2, 5, 8))
    calls.clear()
    expected = run(q, k, cos, sin)
    assert not calls
    for y, right in zip(run(q, k, cos, sin, negate=True), expected, strict=True):
        torch.testing.assert_close(y, -right)
    run(q, k, cos, sin, None, 1, True)
    assert calls == [True, True]
    run(q, k, cos.requires_grad_(), sin)[0].sum().backward()
    assert cos.grad.any()
