"""Logits are left out in the forward of the model, of a head whose weight stays; nowhere else."""

import threading

import liger_hf
import pytest
import torch
import zoo
from families import (
    VOCAB,
    assert_same_objects,
    assert_same_step,
    build,
    gradients,
    snapshot,
    tokens,
)
from liger_hf.deferred import DeferredLogits
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

INPUTS = {"input_ids": tokens(), "labels": tokens()}


def loss(model: nn.Module) -> torch.Tensor:
    return model(**INPUTS).loss


def head_only(family: str = "llama") -> nn.Module:
    model = build(family)
    liger_hf.apply(model, norms=False, mlp=False, rope=False)
    return model


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_head_called_by_others(use_reentrant):
    def step(model: nn.Module) -> torch.Tensor:
        hidden = model.model(tokens()).last_hidden_state
        logits = checkpoint(model.lm_head, hidden, use_reentrant=use_reentrant)
        assert type(model.lm_head(hidden)) is torch.Tensor
        assert type(logits) is torch.Tensor
        return logits.logsumexp(-1).mean()

    assert_same_step(gradients(head_only(), step), gradients(build("llama"), step))


def test_language_model_called_by_others():
    """Of a model that calls it, and computes the loss itself."""
    model = zoo.tiny("image-text-to-text", "blip-2")
    report = liger_hf.apply(model, norms=False, mlp=False, rope=False)
    assert [row.path for row in report.patched] == ["language_model.lm_head"]
    assert type(model.language_model(tokens()).logits) is torch.Tensor
    assert type(model.language_model(tokens(), return_dict=False)[0]) is torch.Tensor


def test_other_threads_get_logits():
    model, seen = head_only().eval(), []

    def other() -> None:
        seen.append(type(model(tokens()).logits))

    def meanwhile(*_: object) -> None:
        hook.remove()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    hook = model.model.register_forward_hook(meanwhile)
    assert model(**INPUTS, skip_logits=True).logits is None
    assert seen == [torch.Tensor]


def test_models_inside_others():
    """A patched model that another patched one calls takes nothing from it."""
    outer, inner = head_only(), head_only("gemma2")
    seen = []
    hook = outer.model.register_forward_hook(
        lambda *_: seen.append(inner(tokens(), skip_logits=False).logits)
    )
    assert isinstance(outer(**INPUTS).logits, DeferredLogits)
    assert outer.eval()(**INPUTS, skip_logits=True).logits is None
    hook.remove()
    assert [type(logits) for logits in seen] == [torch.Tensor] * 2


def test_compiled_in_parts():
    """The model's forward is compiled by itself, inside ours."""

    class Breaks(nn.Module):
        def __init__(self, inside: nn.Module):
            super().__init__()
            self.inside = inside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return self.inside(x)

    model = head_only()
    model.model.norm = Breaks(model.model.norm)
    torch._dynamo.reset()
    run = torch.compile(model, backend="eager")
    for _ in range(2):
        assert isinstance(run(**INPUTS).logits, DeferredLogits)
        assert type(run(tokens()).logits) is torch.Tensor
        assert type(model.lm_head(torch.ones(2, 32))) is torch.Tensor


def test_compiled_once():
    """Windows that open and close, in compiled code and beside it, compile nothing anew."""
    from torch._dynamo.testing import CompileCounter

    model, counter = head_only(), CompileCounter()
    torch._dynamo.reset()
    run = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(3):
        run(**INPUTS)
        model(**INPUTS)
    assert counter.frame_count == 1


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_parametrised_weight():
    plain, patched = build("llama"), head_only()
    for model in (plain, patched):
        parametrize.register_parametrization(model.lm_head, "weight", Doubled())
    assert_same_step(gradients(patched, loss), gradients(plain, loss))
    assert type(patched(**INPUTS).logits) is torch.Tensor
    (row,) = liger_hf.report(plain, norms=False, mlp=False, rope=False).refused
    assert row.reason == "its weight is parametrised"


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter])
def test_lent_weights(kind):
    """They are gone when logits are read later: real ones, or an error."""
    plain, patched = build("llama"), head_only()
    weights = {
        name: nn.Parameter(2 * weight.detach()) if kind is nn.Parameter else 2 * weight.detach()
        for name, weight in plain.named_parameters()
    }
    expected = functional_call(plain, weights, kwargs=INPUTS)
    actual = functional_call(patched, weights, kwargs=INPUTS)
    torch.testing.assert_close(actual.loss, expected.loss)
    if kind is nn.Parameter:
        with pytest.raises(RuntimeError, match="weight had changed"):
            actual.logits.sum()
    else:
        assert torch.equal(actual.logits, expected.logits)
    assert functional_call(patched, weights, (tokens(),)).logits.shape == (2, 9, VOCAB)


def test_head_replaced_after_apply():
    plain, patched = build("llama"), head_only()
    before = snapshot(plain)[""]
    for model in (plain, patched):
        torch.manual_seed(0)
        model.resize_token_embeddings(70)
    assert type(patched(**INPUTS).logits) is torch.Tensor
    liger_hf.apply(patched, norms=False, mlp=False, rope=False)
    assert isinstance(patched(**INPUTS).logits, DeferredLogits)
    assert_same_step(gradients(patched, loss), gradients(plain, loss))
    liger_hf.revert(patched)
    assert vars(patched).keys() == before.keys()
    assert patched.loss_function is plain.loss_function
    assert type(patched(**INPUTS).logits) is torch.Tensor


def test_patch_put_back_by_a_wrapper():
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("llama")
    before = snapshot(model)
    for _ in range(2):
        liger_hf.apply(model, norms=False, mlp=False, rope=False)
        for module in (model, model.lm_head):
            hooks.add_hook_to_module(module, hooks.ModelHook())
        liger_hf.revert(model)
        for module in (model, model.lm_head):
            hooks.remove_hook_from_module(module)
        assert type(model(**INPUTS).logits) is torch.Tensor
    report = liger_hf.report(model, norms=False, mlp=False, rope=False)
    assert not report.refused
    liger_hf.apply(model, norms=False, mlp=False, rope=False)
    assert isinstance(model(**INPUTS).logits, DeferredLogits)
    liger_hf.revert(model)
    assert_same_objects(model, before)


def test_weights_that_are_loaded_for_one_call():
    accelerate = pytest.importorskip("accelerate")
    plain, patched = build("llama"), head_only()
    for model in (plain, patched):
        accelerate.cpu_offload(model, torch.device("cpu"))
    with torch.no_grad():
        expected, actual = plain(**INPUTS), patched(**INPUTS)
        torch.testing.assert_close(actual.loss, expected.loss)
        assert torch.equal(actual.logits, expected.logits)
        assert torch.equal(patched(tokens()).logits, expected.logits)
        alone = patched(**INPUTS, skip_logits=True)
    torch.testing.assert_close(alone.loss, expected.loss)
    assert alone.logits is None
