"""Which heads are found and refused, and evaluation with and without logits."""

import operator
import types

import liger_hf
import pytest
import torch
from families import VOCAB, assert_same_step, build, gradients, tokens
from liger_hf.deferred import DeferredLogits
from liger_hf.logit_ops import fold
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutput

HEAD = {"norms": False, "mlp": False, "rope": False, "mask": False}


def loss(model: nn.Module) -> torch.Tensor:
    return model(input_ids=tokens(), labels=tokens()).loss


def test_loss_alone_in_evaluation(monkeypatch):
    plain, patched = build("gemma2").eval(), build("gemma2").eval()
    liger_hf.apply(patched, **HEAD)
    inputs = {"input_ids": tokens(), "labels": tokens()}
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setattr(DeferredLogits, "materialize", lambda self: pytest.fail("logits made"))
            outputs = patched(**inputs, skip_logits=True)
            assert patched(**inputs, skip_logits=True, return_dict=False)[0] == outputs.loss
        torch.testing.assert_close(outputs.loss, plain(**inputs).loss)
        assert outputs.logits is None
        assert not any(isinstance(value, DeferredLogits) for value in outputs.to_tuple())
        assert "logits" not in outputs
        # and back
        assert type(patched(**inputs).logits) is torch.Tensor
        assert type(patched(**inputs, skip_logits=False).logits) is torch.Tensor
    # as Trainer calls a model whose loss it computes itself
    for given in ({}, {"return_dict": False}):
        alone = patched(input_ids=tokens(), skip_logits=True, **given)
        assert torch.equal(alone[0], patched(input_ids=tokens()).logits)


@pytest.mark.parametrize("name", ["imul", "itruediv", "iadd", "isub", "ipow"])
@pytest.mark.parametrize("read", [False, True])
def test_operators_in_place(name, read):
    """Logits that the caller changes, of which a loss is then computed."""
    change, found = getattr(operator, name), []
    for patch in (False, True):
        model = build("llama")
        if patch:
            liger_hf.apply(model, **HEAD)
        outputs = model(input_ids=tokens(), labels=tokens())
        logits = outputs.logits
        if read:
            logits.sum()
        logits = change(logits, 3.0)
        assert logits is outputs.logits
        total = outputs.loss + outputs.logits.logsumexp(-1).square().mean()
        total.backward()
        found.append((total, model.lm_head.weight.grad))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_last_classes_left_out():
    """Padding of the vocabulary, as inkling does it."""
    plain, patched = build("llama"), build("llama")

    class Padded(type(plain)):
        def forward(self, input_ids, labels):
            logits = self.lm_head(self.model(input_ids).last_hidden_state)
            logits = torch.tanh(logits[..., : VOCAB - 4] / 3.0).contiguous() * 3.0
            loss = self.loss_function(logits, labels % 50, VOCAB - 4)
            return CausalLMOutput(loss=loss, logits=logits)

    plain.__class__ = patched.__class__ = Padded
    liger_hf.apply(patched, **HEAD)
    assert_same_step(gradients(patched, loss), gradients(plain, loss))
    logits = patched(input_ids=tokens(), labels=tokens()).logits
    assert logits.tensor is None
    assert logits.shape == (2, 9, VOCAB - 4)
    assert torch.equal(logits + 0, logits.materialize())
    assert fold((("classes", 9), ("mul", 2.0), ("classes", 7))) == {
        "classes": 7,
        "logit_scale": 2.0,
    }


def test_label_smoothing_of_trainer():
    from transformers.trainer_pt_utils import LabelSmoother

    plain, patched = build("gemma2"), build("gemma2")
    liger_hf.apply(patched, **HEAD)

    def smoothed(model: nn.Module) -> torch.Tensor:
        outputs = model(input_ids=tokens(), labels=tokens())
        return LabelSmoother(epsilon=0.1)(outputs, tokens(), shift_labels=True)

    assert_same_step(gradients(patched, smoothed), gradients(plain, smoothed))


def test_every_head_of_several_models():
    pair = nn.ModuleDict({"actor": build("llama"), "critic": build("gemma2")})
    report = liger_hf.apply(pair, **HEAD)
    assert [row.path for row in report.patched] == ["actor.lm_head", "critic.lm_head"]
    for name, family in (("actor", "llama"), ("critic", "gemma2")):
        assert_same_step(gradients(pair[name], loss), gradients(build(family), loss))
    liger_hf.revert(pair)
    assert "forward" not in vars(pair["critic"].lm_head)


def test_forward_of_another_library_is_named():
    def fast_forward(self, input_ids=None, labels=None, **kwargs):
        return self.loss_function

    fast_forward.__module__ = "elsewhere.fast"
    model = build("llama")
    model.forward = types.MethodType(fast_forward, model)
    report = liger_hf.apply(model)
    assert [row.reason for row in report.refused] == [
        "LlamaForCausalLM.forward was replaced already, by elsewhere.fast"
    ]
    assert [row.path for row in report.refused] == ["lm_head"]


def scaled_loss(logits, labels, vocab_size, class_scale=None, **keywords):
    logits = logits if class_scale is None else logits * class_scale
    return ForCausalLMLoss(logits, labels, vocab_size, **keywords)


def test_keywords_of_a_loss_of_the_user():
    """A call with one of them is for the loss of the user."""
    plain, patched = build("llama"), build("llama")
    plain.loss_function = patched.loss_function = scaled_loss
    report = liger_hf.apply(patched, **HEAD)
    assert not report.refused
    inputs = {"input_ids": tokens(), "labels": tokens()}
    assert patched(**inputs).logits.tensor is None
    inputs["class_scale"] = torch.linspace(0.5, 2.0, VOCAB)
    expected = gradients(plain, lambda m: m(**inputs).loss)
    assert_same_step(gradients(patched, lambda m: m(**inputs).loss), expected)
    liger_hf.revert(patched)
    assert patched.loss_function is scaled_loss


def test_subclass_that_calls_the_inherited_forward():
    model = build("llama")

    class Wider(type(model)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model.__class__ = Wider
    expected = gradients(model, loss)
    assert not liger_hf.apply(model, **HEAD).refused
    assert_same_step(gradients(model, loss), expected)
    assert isinstance(model(input_ids=tokens(), labels=tokens()).logits, DeferredLogits)


def test_weight_that_nobody_gathered_is_named():
    """What ZeRO-3 leaves of a parameter between two uses of it."""
    model = build("llama")
    liger_hf.apply(model, **HEAD)
    model.lm_head.weight.ds_shape = model.lm_head.weight.shape
    model.lm_head.weight.data = torch.empty(0)
    with pytest.raises(RuntimeError, match=r"weight of lm_head is Parameter \(0,\) .* ZeRO-3"):
        loss(model)
