"""The examples run, and what they train gets better."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "options", "sign"),
    [
        ("grpo", {}, 1),
        ("grpo", {"loss_type": "gspo"}, 1),
        ("dpo", {}, -1),
        ("kto", {}, 1),
        ("distillation", {}, -1),
        ("distillation", {"loss_type": "reverse_kl", "on_policy": True}, -1),
    ],
)
def test_improves(name, options, sign, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    found = importlib.import_module(name).train(12, **options)
    before, after = sum(found[:3]) / 3, sum(found[-3:]) / 3
    assert sign * (after - before) > 0
    assert "step 10" in capsys.readouterr().out
