"""Names, order and defaults of the arguments that callers of version 0.8.5 rely on."""

import ast
import importlib
import inspect
import json
from pathlib import Path

import pytest

SIGNATURES = json.loads(Path(__file__).with_name("signatures.json").read_text())


def found(path):
    module, _, name = path.rpartition(".")
    if name in ("__init__", "forward"):
        return getattr(found(module), name)
    return getattr(importlib.import_module(f"liger_kernel.{module}"), name)


def recorded(text):
    """(positional, keyword-only, which have a star): names with defaults, if there are any."""
    positional, keywords = {}, {}
    for part in filter(None, text.split(", ")):
        name, _, default = part.partition("=")
        value = ast.literal_eval(default) if default else inspect.Parameter.empty
        (keywords if name[0] == "*" else positional)[name.lstrip("*")] = value
    return positional, keywords


@pytest.mark.parametrize("path", SIGNATURES)
def test_arguments_are_where_they_were(path):
    positional, keywords = recorded(SIGNATURES[path])
    own = inspect.signature(found(path)).parameters
    names = [name for name in own if name not in ("self", "args", "kwargs")]
    # there may be further ones behind them
    assert names[: len(positional)] == list(positional)
    assert keywords.keys() <= own.keys()
    for name, default in (positional | keywords).items():
        # the size of a norm without a weight: any number will do
        if default is not inspect.Parameter.empty and name != "dim":
            assert own[name].default == default, name


def test_record_is_read():
    assert recorded("x, eps=1e-06, *mode=None") == (
        {"x": inspect.Parameter.empty, "eps": 1e-6}, {"mode": None}
    )  # fmt: skip
    assert len(SIGNATURES) > 100
