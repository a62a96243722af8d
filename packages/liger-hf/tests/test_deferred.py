"""Logits left out in training: same losses, and a tensor whenever one is asked for."""

import copy
import pickle

import liger_hf
import pytest
import torch
from families import VOCAB, assert_same_step, build, gradients, tokens
from liger_hf.deferred import DeferredLogits
from liger_hf.logit_ops import fold
from torch import nn
from torch.nn.functional import cross_entropy


def head_only(family: str, **overrides) -> tuple[nn.Module, nn.Module]:
    """The same model twice, the second with its head patched and nothing else."""
    plain, patched = build(family, **overrides), build(family, **overrides)
    liger_hf.apply(patched, norms=False, mlp=False, rope=False)
    return plain, patched


def same_loss(plain: nn.Module, patched: nn.Module, **inputs) -> None:
    inputs = {"input_ids": tokens(), **inputs}
    outputs = patched(**inputs)
    assert isinstance(outputs.logits, DeferredLogits)
    assert outputs.logits.tensor is None
    assert_same_step(
        gradients(patched, lambda m: m(**inputs).loss), gradients(plain, lambda m: m(**inputs).loss)
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere"])
def test_loss_keywords(family):
    plain, patched = head_only(family)
    labels = tokens()
    masked = labels.where(labels > 8, -100)
    same_loss(plain, patched, labels=masked)
    same_loss(plain, patched, labels=masked, num_items_in_batch=torch.tensor(11))
    same_loss(plain, patched, labels=masked, num_items_in_batch=11)
    same_loss(plain, patched, labels=labels, shift_labels=masked.roll(-1, 1))
    same_loss(plain, patched, labels=labels, ignore_index=5)
    same_loss(plain, patched, labels=labels, output_hidden_states=True, output_attentions=True)


def test_no_label_at_all_gives_zero():
    """Where transformers divides zero by zero."""
    _, patched = head_only("llama")
    value, grads = gradients(
        patched, lambda m: m(input_ids=tokens(), labels=torch.full((2, 9), -100)).loss
    )
    assert value == 0
    assert all(not grad.any() for grad in grads.values())


def test_packed_tokens_of_a_mask():
    """`logits_to_keep` as a mask gives hidden states without a batch dimension."""
    plain, patched = head_only("llama")
    labels = tokens()
    keep = labels > 20
    same_loss(
        plain, patched, labels=labels, shift_labels=labels.roll(-1, 1)[keep], logits_to_keep=keep
    )


def test_bias_of_the_head():
    plain, patched = build("llama"), build("llama")
    for model in (plain, patched):
        model.lm_head = nn.Linear(32, VOCAB, bias=True)
        torch.manual_seed(1)
        model.lm_head.reset_parameters()
    liger_hf.apply(patched)
    same_loss(plain, patched, labels=tokens())


def test_frozen_head_and_frozen_body():
    for frozen in ("lm_head", "model"):
        plain, patched = head_only("llama")
        for model in (plain, patched):
            getattr(model, frozen).requires_grad_(False)
        same_loss(plain, patched, labels=tokens())


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_logits_of_a_training_step_are_those_of_the_model(family):
    plain, patched = head_only(family)
    inputs = {"input_ids": tokens(), "labels": tokens()}
    expected, promise = plain(**inputs).logits, patched(**inputs).logits
    assert promise.shape == expected.shape
    assert (promise.dtype, promise.device, promise.ndim) == (
        expected.dtype,
        expected.device,
        expected.ndim,
    )
    assert (promise.size(), promise.size(-1), promise.dim(), len(promise)) == (
        expected.shape,
        VOCAB,
        3,
        2,
    )
    assert promise.tensor is None
    assert torch.equal(promise[:, -1], expected[:, -1])
    assert torch.equal(promise.argmax(-1), expected.argmax(-1))
    assert promise.requires_grad
    assert promise.materialize() is promise.materialize()


def test_unknown_operations_see_real_logits():
    plain, patched = head_only("llama")
    inputs = {"input_ids": tokens(), "labels": tokens()}
    z = plain(**inputs).logits

    def fresh():
        return patched(**inputs).logits

    for function in (
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: x * torch.ones(VOCAB),
        lambda x: -x,
        lambda x: x > 0,
        lambda x: x @ torch.ones(VOCAB),
        lambda x: x.view(-1, VOCAB),
        lambda x: x.to("cpu", torch.float64),
        lambda x: torch.softmax(x, -1),
        lambda x: torch.cat([x, x], 1),
        lambda x: torch.stack(list(x)),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: cross_entropy(x.flatten(0, 1), tokens().flatten()),
        lambda x: nn.Softmax(-1)(x),
        lambda x: x[..., :4].contiguous(),
        lambda x: torch.tanh(x / 3) * 3,
        lambda x: torch.mul(x, 0.5),
    ):
        actual, expected = function(fresh()), function(z)
        actual = actual.materialize() if isinstance(actual, DeferredLogits) else actual
        assert type(actual) is torch.Tensor
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0)


def test_gradients_flow_through_logits_beside_the_loss():
    plain, patched = head_only("gemma2")

    def loss(model):
        outputs = model(input_ids=tokens(), labels=tokens())
        with torch.no_grad():
            scale = outputs.logits.abs().mean()
        return outputs.loss + torch.logsumexp(outputs.logits, -1).mean() / scale

    assert_same_step(gradients(patched, loss), gradients(plain, loss))


def test_gradient_of_the_logits():
    plain, patched = head_only("llama")
    grads = []
    for model in (plain, patched):
        logits = model(input_ids=tokens(), labels=tokens()).logits
        assert logits.grad is None
        logits.retain_grad()
        logits.logsumexp(-1).mean().backward()
        grads.append(logits.grad)
    torch.testing.assert_close(grads[1], grads[0])
    # what else is asked of a tensor is not answered by a field either
    fields = vars(patched(input_ids=tokens(), labels=tokens()).logits)
    assert not [name for name in fields if hasattr(torch.Tensor, name)]


def test_edits_in_place_reach_the_loss():
    """A forward that edits its logits before the loss gets the loss of the edited logits."""
    plain, patched = build("llama"), build("llama")
    seen = []

    class Edited(type(plain)):
        def forward(self, input_ids, labels):
            logits = self.lm_head(self.model(input_ids).last_hidden_state)
            seen.append(type(logits))
            logits[..., :7] = -5.0
            return self.loss_function(logits=logits, labels=labels, vocab_size=VOCAB)

    plain.__class__ = patched.__class__ = Edited
    liger_hf.apply(patched)
    inputs = {"input_ids": tokens(), "labels": tokens()}
    torch.testing.assert_close(patched(**inputs), plain(**inputs))
    assert seen == [DeferredLogits, torch.Tensor]


def test_without_labels_and_in_evaluation_logits_are_tensors():
    _, model = head_only("llama")
    assert type(model(input_ids=tokens()).logits) is torch.Tensor
    assert all(type(v) is not DeferredLogits for v in model(input_ids=tokens(), return_dict=False))
    assert type(model.eval()(input_ids=tokens(), labels=tokens()).logits) is torch.Tensor


def test_tuple_output():
    plain, patched = head_only("llama")
    inputs = {"input_ids": tokens(), "labels": tokens(), "return_dict": False}
    torch.testing.assert_close(patched(**inputs)[0], plain(**inputs)[0])


def test_reading_logits_after_the_optimizer_step_is_an_error():
    _, model = head_only("llama")
    outputs = model(input_ids=tokens(), labels=tokens())
    outputs.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="before the optimizer step"):
        outputs.logits.argmax(-1)


def test_logits_outlive_the_patch():
    plain, patched = head_only("granite")
    inputs = {"input_ids": tokens(), "labels": tokens()}
    promise = patched(**inputs).logits
    liger_hf.revert(patched)
    assert torch.equal(promise + 0, plain(**inputs).logits)


def test_autocast_of_the_forward_holds_for_logits_read_later():
    plain, patched = head_only("llama")
    results = []
    for model in (plain, patched):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(input_ids=tokens(), labels=tokens())
        assert outputs.logits.dtype is torch.bfloat16
        results.append((outputs.loss, outputs.logits + 0))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=0.0)
    assert torch.equal(results[1][1], results[0][1])


def test_pickle_and_copy_give_tensors():
    _, model = head_only("llama")
    with torch.no_grad():
        logits = model(input_ids=tokens(), labels=tokens()).logits
    assert type(pickle.loads(pickle.dumps(logits))) is torch.Tensor
    assert type(copy.deepcopy(logits)) is torch.Tensor


def test_hook_on_the_head_sees_real_logits_once():
    plain, patched = head_only("llama")
    seen = []
    patched.lm_head.register_forward_hook(lambda module, args, output: seen.append(output))
    inputs = {"input_ids": tokens(), "labels": tokens()}
    loss = patched(**inputs).loss
    assert [type(output) for output in seen] == [torch.Tensor]
    torch.testing.assert_close(loss, plain(**inputs).loss)
    report = liger_hf.report(build_hooked())
    assert [row.reason for row in report.refused] == ["has forward hooks"]


def build_hooked() -> nn.Module:
    model = build("llama")
    model.lm_head.register_forward_hook(print)
    return model


def test_loss_function_of_the_user_is_kept():
    model = build("llama")
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    mine = model.loss_function
    report = liger_hf.apply(model)
    assert ["loss function is no causal-LM loss" in row.reason for row in report.refused] == [True]
    assert model.loss_function is mine
    # set after apply, it gets deferred logits, which are logits to it
    model = build("llama")
    liger_hf.apply(model)
    model.loss_function = mine
    inputs = {"input_ids": tokens(), "labels": tokens()}
    torch.testing.assert_close(model(**inputs).loss, model.eval()(**inputs).loss)


@pytest.mark.parametrize(
    ("ops", "options"),
    [
        ((), {"logit_scale": 1.0}),
        ((("div", 4.0), ("to", torch.float32)), {"logit_scale": 0.25}),
        ((("div", 30.0), ("tanh", None), ("mul", 30.0)), {"softcap": 30.0, "logit_scale": 1.0}),
        ((("mul", 0.5), ("tanh", None), ("mul", 8)), {"softcap": 8.0, "logit_scale": 4.0}),
        ((("tanh", None), ("tanh", None)), None),
        ((("tanh", None), ("mul", -2.0)), None),
        ((("mul", 0),), None),
    ],
)
def test_recorded_operations_fold_into_options_of_the_loss(ops, options):
    folded = fold(ops)
    assert folded == (options and pytest.approx(options))
