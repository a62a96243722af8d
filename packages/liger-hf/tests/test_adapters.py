"""PEFT: adapters on every part, copies of the head, and adapters that move between models."""

import copy
import pickle

import liger_hf
import pytest
import torch
from families import assert_same_step, build, gradients, tokens
from liger_hf.deferred import DeferredLogits

peft = pytest.importorskip("peft")


def loss(model):
    return model(input_ids=tokens(), labels=tokens()).loss


def adapted(model, **options):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(model, config).train()


def both_orders(order, **options):
    model = build("llama")
    if order == "patch, adapt":
        liger_hf.apply(model)
        return adapted(model, **options)
    model = adapted(model, **options)
    liger_hf.apply(model)
    return model


ORDERS = pytest.mark.parametrize("order", ["adapt, patch", "patch, adapt"])


@ORDERS
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_lora(targets, order):
    expected = gradients(adapted(build("llama"), target_modules=targets), loss)
    model = both_orders(order, target_modules=targets)
    assert_same_step(gradients(model, loss), expected)
    reasons = [row.reason for row in liger_hf.report(model).refused]
    assert reasons == (
        ["head is peft.tuners.lora.layer.Linear, not a plain nn.Linear"]
        if "lm_head" in targets
        else []
    )
    with model.disable_adapter():
        torch.testing.assert_close(loss(model), loss(build("llama")))
    liger_hf.revert(model)
    assert_same_step(gradients(model, loss), expected, rtol=0.0)


def test_only_an_adapted_head_to_patch_is_an_error_that_names_it():
    model = adapted(build("llama"), target_modules=["lm_head"])
    with pytest.raises(ValueError, match=r"base_model\.model\.lm_head .* peft\.tuners\.lora"):
        liger_hf.apply(model, norms=False, mlp=False, rope=False)


@ORDERS
def test_copy_of_the_head(order):
    """`modules_to_save`: the copy is trained, without logits."""
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    expected = gradients(adapted(build("llama"), **options), loss)
    model = both_orders(order, **options)
    assert_same_step(gradients(model, loss), expected)
    assert any("modules_to_save" in name for name in expected[1])
    logits = model(input_ids=tokens(), labels=tokens()).logits
    assert isinstance(logits, DeferredLogits)
    torch.testing.assert_close(logits + 0, model(input_ids=tokens()).logits)
    with model.disable_adapter():
        torch.testing.assert_close(loss(model), loss(build("llama")))
    with torch.no_grad():
        alone = model.eval()(input_ids=tokens(), labels=tokens(), skip_logits=True)
    assert alone.logits is None
    liger_hf.revert(model.train())
    assert_same_step(gradients(model, loss), expected, rtol=0.0)
    assert not any("forward" in vars(module) for module in model.modules())


@ORDERS
def test_second_copy_of_the_head(order):
    """An adapter added to a model that is wrapped and patched."""
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}

    def added(model):
        model.add_adapter("b", peft.LoraConfig(r=4, init_lora_weights=False, **options))
        model.set_adapter("b")
        return model

    expected = gradients(added(adapted(build("llama"), **options)), loss)
    assert any("modules_to_save.b" in name for name in expected[1])
    model = added(both_orders(order, **options))
    assert_same_step(gradients(model, loss), expected)
    assert isinstance(model(input_ids=tokens(), labels=tokens()).logits, DeferredLogits)
    assert_same_step(gradients(copy.deepcopy(model), loss), expected)
    assert_same_step(gradients(pickle.loads(pickle.dumps(model)), loss), expected)
    unloaded = model.unload()
    assert isinstance(unloaded(input_ids=tokens(), labels=tokens()).logits, DeferredLogits)
    torch.testing.assert_close(
        unloaded(input_ids=tokens()).logits, build("llama")(input_ids=tokens()).logits
    )


@ORDERS
def test_adapter_of_the_weight(order):
    options = {"target_modules": ["q_proj"], "target_parameters": ["lm_head.weight"]}
    expected = gradients(adapted(build("llama"), **options), loss)
    assert any("lm_head.lora" in name for name in expected[1])
    assert_same_step(gradients(both_orders(order, **options), loss), expected)


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["q_proj", "lm_head"]])
def test_adapters_move_between_patched_and_plain(targets, tmp_path):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss(model).backward()
        optimizer.step()
        return model

    models = {}
    for name in ("plain", "patched"):
        model = adapted(build("llama"), target_modules=targets)
        if name == "patched":
            liger_hf.apply(model)
        models[name] = train(model)
        model.save_pretrained(tmp_path / name)
    states = {n: peft.get_peft_model_state_dict(m) for n, m in models.items()}
    assert states["plain"].keys() == states["patched"].keys()
    torch.testing.assert_close(states["patched"], states["plain"], rtol=0.0, atol=1e-6)
    # trained patched, loaded plain, and the other way around
    plain = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "patched").eval()
    base = build("llama")
    liger_hf.apply(base)
    patched = peft.PeftModel.from_pretrained(base, tmp_path / "plain").eval()
    expected = models["plain"].eval()(input_ids=tokens()).logits
    for model in (plain, patched):
        torch.testing.assert_close(model(input_ids=tokens()).logits, expected, rtol=0.0, atol=1e-5)
    # merged into a patched model, which is then the plain model's equal
    merged = patched.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=tokens()).logits, expected, rtol=0.0, atol=1e-5)


def test_saved_copy_of_tied_embeddings():
    """PEFT makes that of the head with its numbers of features swapped."""
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = peft.get_peft_model(build("qwen2"), config).train()
    batch = tokens()
    expected = model(input_ids=batch, labels=batch)
    liger_hf.apply(model)
    found = model(input_ids=batch, labels=batch)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits.sum(), expected.logits.sum())
    assert found.logits.shape == expected.logits.shape
