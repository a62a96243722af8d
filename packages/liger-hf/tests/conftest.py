"""With kernels in the interpreter, which is slow, one step of every family is enough."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETED = ("test_forms_are_found", "test_gradients_agree")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    slow = [i for i in items if HERE in i.path.parents and not i.name.startswith(INTERPRETED)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
