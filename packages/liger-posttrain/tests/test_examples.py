"""The examples run, and what they train gets better."""

import importlib
import os
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1",
    reason="minutes of interpreted kernels, whose numbers test_formulas.py compares",
)
@pytest.mark.parametrize(
    ("name", "options", "smaller", "sign"),
    [
        ("grpo", {}, {"GROUPS": 4}, 1),
        ("dpo", {}, {"PAIRS": 4}, -1),
        ("kto", {}, {"BATCH": 8}, 1),
        ("distillation", {"on_policy": True}, {"BATCH": 8}, -1),
        ("sft", {"dft": True}, {"BATCH": 8}, -1),
    ],
)
def test_improves(name, options, smaller, sign, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(name)
    for size, value in smaller.items():
        monkeypatch.setattr(example, size, value)
    found = example.train(12, **options)
    before, after = sum(found[:3]) / 3, sum(found[-3:]) / 3
    assert sign * (after - before) > 0
    assert "step 10" in capsys.readouterr().out
