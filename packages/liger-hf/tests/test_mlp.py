"""Gated MLPs whose down projection is computed by the op, and those whose projection is called."""

import copy

import liger_activations
import liger_hf
import pytest
import torch
import transformers
import zoo
from families import assert_same_step, build, gradients, only_row, tokens
from torch import nn
from torch.nn.utils import parametrize, prune

WIDTH = 48


def loss(model):
    return model(input_ids=tokens(), labels=tokens()).loss


def wide_kept(model):
    """Tensors of the intermediate size that a forward keeps for the backward, those of an MLP."""
    kept: dict[int, torch.Tensor] = {}

    def pack(x):
        if x.shape[-1:] == (WIDTH,) and x.ndim == 3:
            kept[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss(model)
    return len(kept) / len(model.model.layers)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_product_is_not_kept(family):
    model = build(family)
    liger_hf.apply(model)
    assert wide_kept(model) == 2
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda *_: None)
    assert wide_kept(model) == 3


def double(module, args, y=None):
    return 2.0 * (args[0] if y is None else y)


def forward_hook(mlp):
    mlp.down_proj.register_forward_hook(double)


def forward_pre_hook(mlp):
    mlp.down_proj.register_forward_pre_hook(double)


def backward_hook(mlp):
    mlp.down_proj.register_full_backward_hook(lambda module, dx, dy: (2.0 * dx[0],))


def backward_pre_hook(mlp):
    mlp.down_proj.register_full_backward_pre_hook(lambda module, dy: (2.0 * dy[0],))


def own_forward(mlp):
    forward = mlp.down_proj.forward
    mlp.down_proj.forward = lambda x: 2.0 * forward(x)


class Doubled(nn.Linear):
    def forward(self, input):
        return 2.0 * super().forward(input)


def subclass(mlp):
    down = mlp.down_proj
    mlp.down_proj = Doubled(down.in_features, down.out_features)
    mlp.down_proj.load_state_dict(down.state_dict())


def adapter(mlp):
    mlp.down_proj = nn.Sequential(mlp.down_proj, nn.Identity())


def pruned(mlp):
    prune.l1_unstructured(mlp.down_proj, "weight", amount=0.5)


def parametrized(mlp):
    parametrize.register_parametrization(mlp.down_proj, "weight", nn.Tanh())


class Packed(torch.Tensor):
    """As quantised weights are: an operation on it is that of another representation."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is not nn.functional.linear:
            return super().__torch_function__(function, types, args, kwargs)
        x, weight, bias = args
        return nn.functional.linear(x, 2.0 * weight.as_subclass(torch.Tensor), bias)


def packed_weight(mlp):
    weight = mlp.down_proj.weight.detach().as_subclass(Packed)
    mlp.down_proj.weight = nn.Parameter(weight, requires_grad=False)


def lent_view(mlp):
    weight = mlp.down_proj.weight.detach().clone().requires_grad_()
    del mlp.down_proj.weight
    mlp.down_proj.weight = weight.view_as(weight)


def of_zero3(mlp):
    mlp.down_proj.weight.ds_id = 7


CHANGES = [
    forward_hook, forward_pre_hook, backward_hook, backward_pre_hook, own_forward, subclass,
    adapter, pruned, parametrized, packed_weight, lent_view, of_zero3,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_projection_that_is_more_than_a_weight_is_called(change):
    """It became so after the patch, which sees it in the next forward."""
    plain, patched = build("llama"), build("llama")
    liger_hf.apply(patched)
    for model in (plain, patched):
        for layer in model.model.layers:
            change(layer.mlp)
    assert_same_step(gradients(patched, loss), gradients(plain, loss))
    assert wide_kept(patched) >= 2 + (change is not packed_weight)


def test_op_takes_over_again_without_the_hook():
    model = build("llama")
    liger_hf.apply(model)
    layers = model.model.layers
    handles = [layer.mlp.down_proj.register_forward_hook(double) for layer in layers]
    assert wide_kept(model) == 3
    for handle in handles:
        handle.remove()
    assert wide_kept(model) == 2


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_autocast(family):
    def under_autocast(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss(model)

    model = build(family)
    expected = gradients(model, under_autocast)
    liger_hf.apply(model, norms=False, rope=False, loss=False)
    assert_same_step(gradients(model, under_autocast), expected, rtol=2e-2)
    assert wide_kept(model) == 2 if family == "llama" else 1


def test_weight_of_another_dtype_is_the_error_of_a_linear_layer():
    model = build("llama")
    liger_hf.apply(model)
    model.model.layers[1].mlp.down_proj.half()
    with pytest.raises(RuntimeError, match="dtype"):
        loss(model)


@pytest.mark.parametrize("wrong", ["weight", "gate"])
def test_gradients_are_part_of_the_probe(wrong, monkeypatch):
    """An op with the values of the layer, but not the gradients, is not installed."""
    right = liger_activations.glu_linear

    def without(gate, up, weight, bias, **options):
        given = {"gate": gate, "weight": weight}
        given[wrong] = 0.5 * given[wrong] + 0.5 * given[wrong].detach()
        return right(given["gate"], up, given["weight"], bias, **options)

    model = build("llama")
    assert only_row(model.model.layers[0].mlp, "mlp").op == "liger_activations.glu_linear"
    monkeypatch.setattr(liger_activations, "glu_linear", without)
    assert "no canonical form fits" in only_row(model.model.layers[0].mlp, "mlp").reason


def test_apply_in_inference_mode():
    model = build("llama")
    with torch.inference_mode():
        assert not liger_hf.report(model).refused


class DroppingMLP(nn.Module):
    """Drops inside: by a child, or by one of a child."""

    def __init__(self, drop):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.drop = drop

    def forward(self, x):
        return self.down(self.drop(nn.functional.silu(self.gate(x)) * self.up(x)))


class Seldom(nn.Module):
    """Not scaled, and by a rate at which a probe hardly ever sees an element dropped."""

    def forward(self, x):
        return x * (torch.rand(x.shape[:-1]) > 1e-6).unsqueeze(-1) if self.training else x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "drop", [nn.Dropout(0.1), nn.Sequential(nn.Dropout(1e-7)), Seldom(), nn.RReLU(0.999999, 1.0)]
)
def test_dropout_is_seen_in_a_model_in_evaluation(drop, training):
    layer = DroppingMLP(drop).train(training)
    assert "no canonical form fits" in only_row(layer, "mlp").reason
    assert drop.training == training


def test_model_with_dropout_patched_in_evaluation_drops_in_training():
    """`from_pretrained` returns a model in evaluation."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    config = transformers.T5Config(
        vocab_size=64, feed_forward_proj="gated-gelu", dropout_rate=0.1, **sizes
    )
    model = transformers.T5EncoderModel(config).eval()
    liger_hf.apply(model, loss=False)
    mlp, x = model.train().encoder.block[0].layer[1].DenseReluDense, torch.randn(2, 3, 32)
    assert not torch.equal(mlp(x), mlp(x))


ACTIVATION = {"llama": "act_fn", "phi3": "activation_fn"}
ACTIVATIONS = {
    "hook": lambda mlp, name: getattr(mlp, name).register_forward_hook(double),
    "pre-hook": lambda mlp, name: getattr(mlp, name).register_forward_pre_hook(double),
    "another": lambda mlp, name: setattr(mlp, name, nn.ELU()),
    "own forward": lambda mlp, name: setattr(getattr(mlp, name), "forward", torch.sin),
}


@pytest.mark.parametrize("change", ACTIVATIONS)
@pytest.mark.parametrize("family", ACTIVATION)
def test_activation_is_called_where_that_is_noticed(family, change):
    """In a copy too, which has an activation of its own."""
    plain, patched = build(family), build(family)
    liger_hf.apply(patched)
    copied = copy.deepcopy(patched)
    assert wide_kept(copied) == wide_kept(patched) < wide_kept(plain)
    for model in (plain, patched, copied):
        for layer in model.model.layers:
            ACTIVATIONS[change](layer.mlp, ACTIVATION[family])
    expected = gradients(plain, loss)
    assert_same_step(gradients(patched, loss), expected)
    assert_same_step(gradients(copied, loss), expected)


def test_hooks_are_not_called_by_the_probe():
    model, calls = build("llama"), []
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(model, loss)
    calls.clear()
    assert not liger_hf.apply(model).refused
    assert not calls
    assert_same_step(gradients(model, loss), expected)
    assert len(calls) == 2


def test_rate_of_dropout_set_later_counts():
    layer, x = DroppingMLP(nn.Dropout(0.0)), torch.randn(2, 6)
    assert liger_hf.apply(layer, loss=False).patched
    layer.drop.p = 0.5
    assert not torch.equal(layer(x), layer(x))


def test_layer_between_is_not_left_out():
    """BitNet has a norm before its down projection."""
    model = zoo.tiny("causal-lm", "bitnet")
    assert only_row(model.model.layers[0].mlp, "mlp").op == "liger_activations.glu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_last_projection_in_fp32(dtype):
    """T5 keeps it so, and casts its input."""
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    layer = transformers.models.t5.modeling_t5.T5DenseGatedActDense(config).to(dtype)
    layer.wo.float()
    x = torch.randn(2, 5, 32).to(dtype)
    expected = layer(x)
    assert liger_hf.apply(layer, loss=False).patched
    assert torch.equal(layer(x), expected)
