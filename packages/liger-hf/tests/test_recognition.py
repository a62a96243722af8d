"""What counts as one of the canonical forms, and the reasons given for what does not."""

import sys

import liger_hf
import pytest
import torch
from families import SIZES, build, tokens
from liger_hf import find
from torch import nn
from torch.nn import functional as F
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
    assert len(report.patched) == 10
    assert [row.reason for row in report.refused] == [
        "holds no transformers model with an output head"
    ]


def test_meta_device():
    with torch.device("meta"):
        model = build("llama")
    assert len(liger_hf.apply(model).patched) == 11


class FunctionMLP(nn.Module):
    """Its activation is a function, not a child."""

    def __init__(self, act, name="act_fn"):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.name = name
        setattr(self, name, act)

    def forward(self, x):
        act = getattr(self, self.name)
        return self.down((act[0] if isinstance(act, list) else act)(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("name", ["act_fn", "_act"])
@pytest.mark.parametrize("wrap", [lambda act: act, lambda act: [act]])
def test_layers_with_different_functions_share_no_verdict(name, wrap):
    acts = (F.silu, F.gelu, torch.sin, F.silu)
    model, x = nn.Sequential(*(FunctionMLP(wrap(act), name) for act in acts)), torch.randn(3, 6)
    expected = model(x)
    rows = liger_hf.apply(model, loss=False).rows
    assert [row.form for row in rows] == [
        "glu silu, gate and up", "glu gelu, gate and up", "", "glu silu, gate and up",
    ]  # fmt: skip
    torch.testing.assert_close(model(x), expected)


def test_function_set_later_is_called():
    layer, x = FunctionMLP(F.silu), torch.randn(3, 6)
    liger_hf.apply(layer, loss=False)
    layer.act_fn = torch.sin
    assert torch.equal(layer(x), layer.down(torch.sin(layer.gate(x)) * layer.up(x)))


def test_ordinary_layers_share_a_verdict(monkeypatch):
    """Each has an activation of its own, in Gemma with a `functools.partial` in it, and its
    projections may have the hooks of accelerate.
    """
    hooks = pytest.importorskip("accelerate.hooks")
    probed = []

    def counting(part):
        return part._replace(probe=lambda module: probed.append(part.flag) or part.probe(module))

    monkeypatch.setattr(find, "PARTS", [counting(part) for part in find.PARTS])
    model = build("gemma", num_hidden_layers=4)
    for layer in model.model.layers:
        hooks.add_hook_to_module(layer.mlp.up_proj, hooks.ModelHook())
        layer.mlp.limits = [1.0, {"high": 2.0}]
    assert len(liger_hf.report(model).patched) == 19
    assert sorted(probed) == ["mask", "mlp", "norms", "rope"]
