"""apply, revert, applied, report: what changes, what does not, and what goes wrong."""

import collections
import copy
import importlib
import io
import pickle
import sys
import threading

import liger_hf
import pytest
import torch
import zoo
from families import (
    assert_same_objects,
    assert_same_step,
    build,
    gradients,
    snapshot,
    tokens,
)
from liger_hf.replaced import patches
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def step(model):
    batch = tokens()
    return gradients(model, lambda m: m(input_ids=batch, labels=batch).loss)


def test_second_apply_changes_nothing():
    model = build("llama")
    first = liger_hf.apply(model)
    after = snapshot(model)
    second = liger_hf.apply(model)
    assert_same_objects(model, after)
    assert str(first) == str(second)


def test_flags_choose_the_parts():
    model = build("llama")
    report = liger_hf.apply(model, norms=False, rope=False, loss=False, mask=False)
    assert {row.op for row in report.rows} == {"liger_activations.glu_linear"}
    report = liger_hf.apply(model, mlp=False)
    assert {row.op for row in report.rows if row.part != "mask"} == {
        "liger_norms.rms_norm",
        "liger_rope.rope",
        "liger_losses.linear_cross_entropy",
    }


def test_every_op_runs(monkeypatch):
    calls = collections.Counter()

    def count(package, op):
        original = getattr(importlib.import_module(package), op)

        def counting(*args, **kwargs):
            calls[op] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(f"{package}.{op}", counting)

    count("liger_norms", "rms_norm")
    count("liger_activations", "glu_linear")
    count("liger_rope", "rope")
    count("liger_losses", "linear_cross_entropy")
    model = build("qwen3")
    liger_hf.apply(model)
    calls.clear()
    step(model)
    assert calls == {"rms_norm": 9, "glu_linear": 2, "rope": 2, "linear_cross_entropy": 1}
    liger_hf.revert(model)
    step(model)
    assert calls.total() == 14


def test_report_changes_nothing():
    model = build("llama")
    before, state = snapshot(model), torch.get_rng_state()
    text = str(liger_hf.report(model))
    assert_same_objects(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert "model.layers.[0-1].mlp" in text
    assert "11 patched, 0 not patched" in text


def test_context_manager_reverts_what_it_applied():
    model = build("llama")
    liger_hf.apply(model, mlp=False, rope=False, loss=False)
    before = snapshot(model)

    def work():
        with liger_hf.applied(model):
            assert "forward" in vars(model.model.layers[0].mlp)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert_same_objects(model, before)


@pytest.mark.parametrize(
    "model_type", ["gemma2", "qwen3_next", "gpt_oss", "deepseek_v3", "llama4_text", "nemotron_h"]
)
def test_another_model_and_all_classes_stay_untouched(model_type):
    patched, other = zoo.tiny("causal-lm", model_type), zoo.tiny("causal-lm", model_type)
    classes = {c for module in patched.modules() for c in type(module).__mro__}
    modules = {m for name, m in sys.modules.items() if name.split(".")[0] == "transformers"}
    tables = (LOSS_MAPPING, ALL_ATTENTION_FUNCTIONS._global_mapping, ACT2FN)
    tables += (ALL_EXPERTS_FUNCTIONS._global_mapping,)

    def world():
        owners = [*classes, *modules, torch, torch.nn.functional, torch.Tensor]
        found = {id(owner): dict(vars(owner)) for owner in owners}
        # past ACT2FN's own lookup, which makes a new module
        return found | {f"table {i}": dict(dict.items(table)) for i, table in enumerate(tables)}

    # what the model's own code writes on its first step is there already
    step(other)
    before, others = world(), snapshot(other)
    liger_hf.apply(patched)
    step(patched)
    liger_hf.explain(patched)
    for key, attributes in world().items():
        assert attributes.keys() == before[key].keys()
        assert all(value is before[key][name] for name, value in attributes.items()), key
    assert_same_objects(other, others)


def test_parts_are_reverted_in_any_order():
    """Contexts that overlap without one being inside the other."""
    model = build("qwen3")
    before, expected = snapshot(model), step(model)
    first = liger_hf.applied(model, mlp=False, rope=False, loss=False, mask=False)
    second = liger_hf.applied(model, norms=False)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert {row.part for row in liger_hf.apply(model, norms=False).patched} == {
        "mlp",
        "rope",
        "mask",
        "loss",
    }
    assert "forward" not in vars(model.model.norm)
    assert_same_step(step(model), expected)
    second.__exit__(None, None, None)
    assert_same_objects(model, before)


def test_error_while_installing_leaves_the_model_as_it_was(monkeypatch):
    from liger_hf.head import LossPatch

    def fail(self):
        raise MemoryError

    model = build("llama")
    before = snapshot(model)
    monkeypatch.setattr(LossPatch, "install", fail)
    with pytest.raises(MemoryError):
        liger_hf.apply(model)
    assert_same_objects(model, before)


def test_nothing_to_replace_is_an_error_with_the_reasons():
    with pytest.raises(ValueError, match="nothing to replace in Sequential"):
        liger_hf.apply(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    with pytest.raises(ValueError, match="nothing to replace"):
        liger_hf.apply(build("llama"), norms=False, mlp=False, rope=False, loss=False)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        liger_hf.apply("llama")


def test_forward_wrapped_later_survives_revert():
    model = build("llama")
    expected = step(model)
    liger_hf.apply(model)
    norm, inner = model.model.norm, model.model.norm.forward
    wrapper = norm.forward = lambda x: inner(x)
    liger_hf.revert(model)
    assert vars(norm)["forward"] is wrapper
    assert not inner.__self__.active
    assert_same_step(step(model), expected, rtol=0.0)


def test_patch_put_back_after_revert_is_no_forward_of_others():
    """As accelerate's `remove_hook_from_module` does with what it had wrapped."""
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("llama")
    expected = step(model)
    first = liger_hf.apply(model, loss=False)
    layers = [m for m in model.modules() if "forward" in vars(m)]
    for layer in layers:
        hooks.add_hook_to_module(layer, hooks.ModelHook())
    liger_hf.revert(model)
    assert not liger_hf.report(model, loss=False).patched
    for layer in layers:
        hooks.remove_hook_from_module(layer)
    second = liger_hf.apply(model, loss=False)
    assert str(second) == str(first)
    assert_same_step(step(model), expected)
    assert all(patch.active for layer in layers for patch in patches(layer))
    liger_hf.revert(model)
    assert_same_step(step(model), expected, rtol=0.0)


def test_copies_are_patched_by_themselves():
    model = build("llama")
    expected = step(model)
    liger_hf.apply(model)
    twin = copy.deepcopy(model)
    assert twin.model.norm.forward.__self__.module is twin.model.norm
    assert_same_step(step(twin), expected)
    liger_hf.revert(twin)
    assert "forward" not in vars(twin.model.norm)
    assert "forward" in vars(model.model.norm)
    assert_same_step(step(twin), expected, rtol=0.0)


def test_pickle_keeps_the_patches():
    model = build("qwen3")
    expected = step(model)
    liger_hf.apply(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert_same_step(step(twin), expected)
        liger_hf.revert(twin)
        assert not any("forward" in vars(module) for module in twin.modules())


def test_threads_apply_and_revert():
    model = build("llama")
    before = snapshot(model)
    errors = []

    def work():
        try:
            for _ in range(3):
                liger_hf.apply(model)
                liger_hf.revert(model)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert_same_objects(model, before)
