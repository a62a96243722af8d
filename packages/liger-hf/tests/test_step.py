"""benchmarks/step.py: its models train, its options work, its search finds the limit."""

import functools
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ("llama", "llama-resized", "qwen3-moe", "gemma2", "qwen2-vl")


@pytest.fixture
def step(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("step")


def results(folder):
    (path,) = folder.glob("*-step.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_variants_of_a_model_train_alike(step, name, monkeypatch):
    """Also compiled by layer, without a compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    eager, *others = [
        step.run_variant(name, variant, small=True)
        for variant in ("eager", "ours", "ours+compile-regions")
    ]
    assert eager["losses"][-1] < eager["losses"][0]
    assert eager["tokens_s"] == pytest.approx(64e3 / eager["ms"]["median"])
    for result in others:
        assert result["losses"] == pytest.approx(eager["losses"], rel=2e-3)
        assert "linear_cross_entropy" in result["report"]


def test_every_layer_is_compiled(step, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda part, **_: calls.append(part) or part)
    model, _ = step.build("qwen2-vl", "eager", True, torch.device("cpu"))
    assert step.compiled(model, "compile-regions") is model
    # two of text, two of the image
    assert len(calls) == 4
    assert step.compiled(model, "compile") is model
    assert calls[4:] == [model]


def test_command_line(step, tmp_path, capsys):
    """Two runs into one file, and a process that is stopped."""
    small = ["--small", "--out", str(tmp_path), "--commit", "c0ffee"]
    assert step.main([*small, "--model", "llama", "--variants", "ours"]) == 0
    assert step.main([*small, "--context", "--variants", "ours"]) == 0
    assert (
        step.main([*small, "--models", "gemma2,llama", "--variants", "eager", "--limit", "0"]) == 0
    )
    document = json.loads((tmp_path / "cpu-step.json").read_text())
    found = [(result["model"], result["name"]) for result in document["step"]]
    assert found == [("llama", "eager"), ("llama", "ours"), ("gemma2", "eager")]
    stopped, ours, _ = document["step"]
    assert stopped["failed"] == "stopped after 0 s"
    assert len(ours["losses"]) == 5
    assert [result["checkpointing"] for result in document["context"]] == [False, True]
    # of 100 tokens that fit, in steps of 16
    assert {(r["tokens"], r["too_long"]) for r in document["context"]} == {(96, 112)}
    assert "llama      ours" in capsys.readouterr().out


def test_results_of_another_commit_go(step, tmp_path):
    common = ["--small", "--out", str(tmp_path), "--limit", "0", "--model", "llama"]
    assert step.main([*common, "--variants", "eager", "--commit", "a"]) == 0
    assert step.main([*common, "--variants", "ours", "--commit", "b"]) == 0
    document = results(tmp_path)
    assert [result["name"] for result in document["step"]] == ["ours"]


@pytest.mark.parametrize("option", ["--models", "--variants"])
def test_unknown_names(step, capsys, option):
    with pytest.raises(SystemExit, match=r"^2$"):
        step.main([option, "eager,what"])
    assert "what; there are" in capsys.readouterr().err


def test_search_finds_the_limit(step):
    longest = sys.modules["step_context"].longest
    for capacity in range(0, 700, 9):
        for guess in (16, 160, 165, 600, 10**6):
            tried = []

            def fits(length, capacity=capacity, tried=tried):
                tried.append(length)
                return length <= capacity

            tokens, too_long = longest(fits, guess, 16, 512)
            assert tokens == min(capacity // 16 * 16, 512)
            assert too_long == (None if tokens == 512 else tokens + 16)
            assert len(tried) == len(set(tried)) <= 12


def test_search_keeps_what_it_knows_when_time_is_up(step):
    longest = sys.modules["step_context"].longest
    answers = iter([True, False, None])
    assert longest(lambda length: next(answers), 160, 16, 512) == (160, 176)
    assert longest(lambda length: None, 160, 16, 512) == (0, None)
    answers = iter([False, False, None])
    assert longest(lambda length: next(answers), 160, 16, 512) == (0, 144)
