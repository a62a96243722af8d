"""pytest plugin of the repository's tests: `-p liger_core.testing.plugin`.

With TRITON_INTERPRET=1 it repairs the interpreter before a kernel is imported, and writes the
launches it saw to the file that LIGER_LAUNCHES names. During tests fresh memory is poisoned, and
seeds and the order of programs are fixed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("liger")
    group.addoption(
        "--fuzz", type=int, default=12, metavar="N", help="random cases per op (default 12)"
    )
    group.addoption(
        "--shrink",
        action="store_true",
        help="look for the smallest failing random case; takes a minute",
    )
    group.addoption(
        "--launches",
        default=os.environ.get("LIGER_LAUNCHES"),
        metavar="FILE",
        help="manifest of kernel launches",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "gpu: needs a GPU with Triton; left out by `nox -s test`, run by `nox -s gpu`"
    )
    config.addinivalue_line("markers", "slow: minutes, or tens of gigabytes of memory")
    from . import interpreter, poison

    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes"):
        interpreter.install()
    poison.install()
    _hypothesis_profile(config.getoption("--fuzz"), config.getoption("--shrink"))


def _hypothesis_profile(examples: int, shrink: bool) -> None:
    from hypothesis import HealthCheck, Phase, settings

    # the same cases everywhere; slowness is the interpreter's; one method serves all specs
    quiet = [HealthCheck.too_slow, HealthCheck.differing_executors]
    settings.register_profile(
        "liger",
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=examples,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=quiet,
    )
    settings.load_profile("liger")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("needs a GPU with Triton")


def _has_gpu() -> bool:
    import torch

    from .interpreter import interpreting

    return torch.cuda.is_available() and not interpreting()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    import torch

    from . import interpreter, poison

    torch.manual_seed(0)
    interpreter.program_order(0)
    with poison.filled():
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    from . import launches

    config: Any = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["launches"] = launches.recorded()
    elif config.getoption("--launches") and launches.recorded():
        launches.write(Path(config.getoption("--launches")))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect what an xdist worker launched."""
    from . import launches

    launches.merge(getattr(node, "workeroutput", {}).get("launches", []))
