"""Experts whose activation is noticed, or another one by now, run their own code."""

import copy

import liger_activations
import liger_hf
import pytest
import torch
import zoo
from families import tokens
from torch import nn


def double(*args):
    return args[-1] * 2 if torch.is_tensor(args[-1]) else (args[-1][0] * 2,)


CHANGES = {
    "hook": lambda experts: experts.act_fn.register_forward_hook(double),
    "pre-hook": lambda experts: experts.act_fn.register_forward_pre_hook(double),
    "another": lambda experts: setattr(experts, "act_fn", nn.ELU()),
    "own forward": lambda experts: setattr(experts.act_fn, "forward", torch.sin),
}


def experts_of(model: nn.Module) -> list[nn.Module]:
    return [m for n, m in model.named_modules() if n.endswith(".experts")]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["qwen3_moe", "llama4_text"])
def test_activation_is_called_where_that_is_noticed(name, change, monkeypatch):
    calls, glu = [], liger_activations.glu

    def counted(*args, **kwargs):
        calls.append(1)
        return glu(*args, **kwargs)

    monkeypatch.setattr(liger_activations, "glu", counted)
    plain = zoo.tiny("causal-lm", name)
    patched = copy.deepcopy(plain)
    report = liger_hf.apply(patched, norms=False, mlp=False, rope=False, loss=False, mask=False)
    assert {row.part for row in report.patched} == {"moe"}
    copied = copy.deepcopy(patched)
    calls.clear()
    models = (plain, patched, copied)
    before = [model(tokens()).logits for model in models]
    assert len(calls) == 2 * len(report.patched)
    for model in models:
        for experts in experts_of(model):
            CHANGES[change](experts)
    after = [model(tokens()).logits for model in models]
    assert len(calls) == 2 * len(report.patched)
    assert not torch.allclose(before[0], after[0])
    for logits in after[1:]:
        torch.testing.assert_close(logits, after[0], rtol=0.0, atol=1e-6)
