"""What counts as one of the canonical forms, and the reasons given for what does not."""

import sys

import liger_hf
import pytest
import torch
from families import SIZES, build, tokens
from torch import nn
from transformers import LlamaConfig, LlamaModel


@pytest.mark.parametrize(
    "package", ["liger_norms", "liger_activations", "liger_rope", "liger_losses"]
)
def test_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    model = build("llama")
    report = liger_hf.apply(model)
    assert report.refused
    assert {row.reason for row in report.refused} == {f"pip install {package.replace('_', '-')}"}
    model(input_ids=tokens(), labels=tokens()).loss.backward()


def test_disagreeing_layers_are_refused_with_the_difference():
    model = build("llama")

    class OtherNorm(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

        def forward(self, x):
            return (
                self.weight
                * x
                * (x.abs().mean(-1, keepdim=True) + self.variance_epsilon).reciprocal()
            )

    class SwappedMLP(type(model.model.layers[0].mlp)):
        def forward(self, x):
            return self.down_proj(torch.tanh(self.gate_proj(x)) * self.up_proj(x))

    model.model.norm = OtherNorm(model.model.norm)
    model.model.layers[1].mlp.__class__ = SwappedMLP
    reasons = {row.path: row.reason for row in liger_hf.apply(model).refused}
    assert reasons.keys() == {"model.norm", "model.layers.1.mlp"}
    assert all("relative difference" in reason for reason in reasons.values())


def test_roles_are_found_by_behaviour():
    class Odd(nn.Module):
        """The projections of a gated MLP under other names, in another order."""

        def __init__(self):
            super().__init__()
            self.w1, self.w2, self.w3 = (
                nn.Linear(8, 6, bias=False),
                nn.Linear(6, 8),
                nn.Linear(6, 8),
            )

        def forward(self, hidden):
            return self.w1(self.w2(hidden) * nn.functional.silu(self.w3(hidden)))

    layer, x = Odd(), torch.randn(3, 6)
    expected = layer(hidden=x)
    assert [row.form for row in liger_hf.apply(layer).patched] == ["glu silu, gate and up"]
    torch.testing.assert_close(layer(hidden=x), expected)


def test_dropout_inside_an_mlp_is_kept():
    class Dropping(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
            self.drop = nn.Dropout(p)

        def forward(self, x):
            return self.down(self.drop(nn.functional.silu(self.gate(x)) * self.up(x)))

    assert liger_hf.report(Dropping(0.0)).patched
    assert not liger_hf.report(Dropping(0.5)).patched


def test_forward_replaced_by_others_is_left_alone():
    model = build("llama")
    norm = model.model.norm
    norm.forward = norm.forward
    refused = liger_hf.apply(model).refused
    assert [row.path for row in refused] == ["model.norm"]
    assert "another library" in refused[0].reason


def test_body_without_head_is_patched():
    body = LlamaModel(LlamaConfig(**SIZES))
    report = liger_hf.apply(body)
    assert len(report.patched) == 9
    assert [row.reason for row in report.refused] == [
        "holds no transformers model with an output head"
    ]


def test_meta_device():
    with torch.device("meta"):
        model = build("llama")
    assert len(liger_hf.apply(model).patched) == 10
