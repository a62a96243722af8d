"""Canonical forms on layers made for the purpose: what is found, and calls that go to the original.

That real models have these forms is the subject of test_support.
"""

import liger_hf
import pytest
import torch
import zoo
from families import assert_same_objects, build, only_row, snapshot, tokens
from torch import nn
from torch.nn import functional as F


class Norm(nn.Module):
    def __init__(self, compute, weight=True, eps=1e-6):
        super().__init__()
        self.compute, self.eps = compute, eps
        self.scale = nn.Parameter(torch.randn(16)) if weight else None

    def forward(self, x):
        return self.compute(x, self.scale, self.eps)


def unit(x, eps):
    return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)


NORMS = {
    "rms_norm cast=before": lambda x, w, eps: w * unit(x, eps).to(x.dtype),
    "rms_norm cast=after": lambda x, w, eps: (w.float() * unit(x, eps)).to(x.dtype),
    "rms_norm offset=1.0, cast=after": lambda x, w, eps: ((w.float() + 1.0) * unit(x, eps)).to(
        x.dtype
    ),
    "rms_norm offset=1.0, cast=before": lambda x, w, eps: (w + 1.0) * unit(x, eps).to(x.dtype),
    "rms_norm cast=after, weight + 1.0": lambda x, w, eps: ((w + 1.0).float() * unit(x, eps)).to(
        x.dtype
    ),
    "layer_norm": lambda x, w, eps: F.layer_norm(x, x.shape[-1:], w, None, eps),
}


@pytest.mark.parametrize("form", NORMS)
def test_norm(form):
    layer = nn.Sequential(Norm(NORMS[form]))
    assert only_row(layer, "norms").form == form
    x = torch.randn(3, 16)
    expected = layer(x)
    liger_hf.apply(layer)
    torch.testing.assert_close(layer(x), expected)


def test_norm_without_weight():
    layer = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64, elementwise_affine=False))
    assert only_row(layer, "norms").form == "layer_norm"


def test_group_norm_is_no_layer_norm():
    """Of [M, N] it is one, but it is made for [M, N, ..]."""
    assert not only_row(nn.Sequential(nn.GroupNorm(1, 64)), "norms").op


def test_norm_with_another_epsilon_is_refused_with_the_difference():
    other = Norm(lambda x, w, eps: w * unit(x, 2 * eps).to(x.dtype))
    row = only_row(nn.Sequential(other), "norms")
    assert "closest is rms_norm cast=" in row.reason
    assert ", relative difference" in row.reason
    assert "rms_norm cast=before: " in row.numbers


class GatedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps, self.groups = nn.Parameter(torch.randn(16)), 1e-5, 4

    def forward(self, hidden_states, gate=None):
        x = hidden_states if gate is None else hidden_states * F.silu(gate.float())
        x = unit(x.unflatten(-1, (self.groups, -1)), self.eps).flatten(-2)
        return self.weight * x.to(hidden_states.dtype)


def test_gated_norm_in_groups():
    layer, x, gate = GatedNorm(), torch.randn(3, 16), torch.randn(3, 16)
    expected, alone = layer(x, gate), layer(x)
    (row,) = liger_hf.apply(layer, loss=False).rows
    assert row.form.endswith("norm_before_gate=False, activation=silu, cast=before, group_size=4")
    torch.testing.assert_close(layer(x, gate), expected)
    torch.testing.assert_close(layer(gate=gate, hidden_states=x), expected)
    # without a gate the original runs
    assert torch.equal(layer(x), alone)


def test_norm_whose_dtypes_mix_otherwise_runs_the_original_then():
    class Promoting(Norm):
        def forward(self, x):
            return self.scale * unit(x, self.eps).to(self.scale.dtype)

    layer, x = Promoting(None), torch.randn(3, 16).bfloat16()
    expected = layer(x)
    liger_hf.apply(layer)
    assert expected.dtype == torch.float32
    assert torch.equal(layer(x), expected)


class MLP(nn.Module):
    def __init__(self, act, wide=True):
        super().__init__()
        self.act, self.limit, self.alpha, self.rate = act, 7.0, 1.702, 0.25
        self.first, self.last = nn.Linear(6, 16 if wide else 8), nn.Linear(8, 6)

    def forward(self, x):
        return self.act(self, self.first(x))


def halves(y):
    return y.chunk(2, dim=-1)


def gpt_oss(self, y):
    gate, up = y[..., ::2].clamp(max=self.limit), y[..., 1::2].clamp(-self.limit, self.limit)
    return self.last((up + 1) * gate * torch.sigmoid(gate * self.alpha))


def clamped(self, y):
    gate, up = halves(y)
    return self.last(F.silu(gate.clamp(max=self.limit)) * up.clamp(-self.limit, self.limit))


def clamped_after(self, y):
    gate, up = halves(y)
    return self.last(F.silu(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit))


MLPS = {
    "glu gelu, gate|up in one": lambda m, y: m.last(F.gelu(halves(y)[0]) * halves(y)[1]),
    "glu relu, up|gate in one": lambda m, y: m.last(F.relu(halves(y)[1]) * halves(y)[0]),
    "glu sigmoid, up|gate in one": lambda m, y: m.last(F.glu(y)),
    "glu relu_squared, gate|up in one": lambda m, y: m.last(
        F.relu(halves(y)[0]).square() * halves(y)[1]
    ),
    "glu silu, gate and up interleaved in one": lambda m, y: m.last(
        F.silu(y[..., ::2]) * y[..., 1::2]
    ),
    "glu silu, gate and up interleaved in one, up_offset=1.0, alpha=1.702, limit=7.0": gpt_oss,
    "glu silu, gate|up in one, clamp=before, limit=7.0": clamped,
    "glu silu, gate|up in one, clamp=after, limit=7.0": clamped_after,
}


@pytest.mark.parametrize("form", MLPS)
def test_mlp(form):
    layer, x = MLP(MLPS[form]), torch.randn(3, 6) * 9
    expected = layer(x)
    (row,) = liger_hf.apply(layer, loss=False).rows
    assert row.form == form
    torch.testing.assert_close(layer(x), expected)


def test_squared_relu_mlp_and_one_that_needs_no_op():
    squared = MLP(lambda m, y: m.last(F.relu(y).square()), wide=False)
    assert only_row(squared, "mlp").op == "liger_activations.relu_squared"
    plain = only_row(MLP(lambda m, y: m.last(F.gelu(y)), wide=False), "mlp")
    assert (plain.form, plain.op, plain.reason) == ("act gelu", "", "one kernel in PyTorch too")


def test_norm_inside_an_mlp_and_dropout_after_it():
    class Inner(MLP):
        def __init__(self):
            super().__init__(None)
            self.norm = nn.LayerNorm(8)

        def forward(self, x, unused=None):
            gate, up = halves(self.first(x))
            y = self.last(self.norm(F.silu(gate) * up))
            return F.dropout(y, self.rate, self.training)

    layer, x = Inner(), torch.randn(3, 6)
    torch.manual_seed(0)
    expected = layer(x)
    assert liger_hf.apply(layer).patched[0].form == "glu silu, gate|up in one"
    torch.manual_seed(0)
    torch.testing.assert_close(layer(x), expected)
    # more than one input: the original
    layer(x, None)


def test_projection_of_another_library():
    class Quantised(nn.Module):
        """As bitsandbytes has it: the weight is packed, and forward knows how."""

        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            packed = (linear.weight.detach() * 100).round().to(torch.int8)
            self.weight = nn.Parameter(packed.flatten(), requires_grad=False)

        def forward(self, x):
            return F.linear(x, self.weight.view(self.out_features, self.in_features).float() / 100)

    model = build("llama").eval()
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Quantised(getattr(layer.mlp, name)))
    expected = model(tokens()).logits
    kinds = {row.kind for row in liger_hf.apply(model).patched}
    assert "LlamaMLP" in kinds
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=0.0, atol=1e-5)


def test_eager_experts_are_refused_with_the_remedy():
    model = zoo.tiny("causal-lm", "qwen3_moe")
    assert only_row(model.model.layers[0].mlp.experts, "moe").op == "liger_activations.glu"
    model.set_experts_implementation("eager")
    row = only_row(model.model.layers[0].mlp.experts, "moe")
    assert row.reason == "experts_implementation is eager, set it to grouped_mm"


@pytest.mark.parametrize("name", ["gpt_oss", "nemotron_h", "deepseek_v4", "qwen3_next"])
def test_gate_of_experts_runs_on_the_op(name, monkeypatch):
    import liger_activations

    calls = []

    def counted(op):
        original = getattr(liger_activations, op)
        monkeypatch.setattr(
            liger_activations, op, lambda *a, **k: (calls.append(op), original(*a, **k))[1]
        )

    counted("glu")
    counted("relu_squared")
    model = zoo.tiny("causal-lm", name)
    before = snapshot(model)
    experts = liger_hf.apply(
        model, norms=False, mlp=False, rope=False, loss=False, mask=False
    ).patched
    assert experts
    assert {row.part for row in experts} == {"moe"}
    calls.clear()
    model(input_ids=tokens())
    assert len(calls) == len(experts)
    # a second call finds the patch again, and adds none
    assert len(
        liger_hf.apply(model, norms=False, mlp=False, rope=False, loss=False, mask=False).rows
    ) == len(experts)
    liger_hf.revert(model)
    assert_same_objects(model, before)


def test_compiled_model():
    """Norms, experts and rotations that the families of test_training do not have."""
    model, batch = zoo.tiny("causal-lm", "gpt_oss"), tokens()
    model.model.layers = model.model.layers[:1]
    expected = model(input_ids=batch, labels=batch).loss
    liger_hf.apply(model)
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = run(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0.0)


def test_explain_prints_forms_with_numbers(capsys):
    model = build("qwen3")
    before = snapshot(model)
    liger_hf.explain(model)
    text = capsys.readouterr().out
    assert_same_objects(model, before)
    (line,) = [line for line in text.splitlines() if line.startswith("model.norm ")]
    assert "  rms_norm cast=before " in line
    assert "  difference 0.0e+00, epsilon 1e-06  liger_norms.rms_norm" in line
