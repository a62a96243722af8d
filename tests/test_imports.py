"""Importing a package costs next to nothing, and needs no Triton."""

import json
import subprocess
import sys

import pytest
from layout import KERNEL_PACKAGES, PROJECTS, import_name

# counts what an import adds, never its time: a test of time fails on a busy machine
ADDED = """
import json, sys
before = set(sys.modules)
exec(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""
BLOCKED = """
import sys
sys.modules["triton"] = None
"""
LOAD = """
import importlib
package = importlib.import_module({!r})
for name in package.__all__:
    getattr(package, name)
"""


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def added_by(statement: str) -> list[str]:
    return list(json.loads(run(ADDED, statement)))


@pytest.mark.parametrize("package", PROJECTS)
def test_import_adds_only_the_package_itself(package: str) -> None:
    """No Triton, no transformers, not even torch or an op of its own before it is used."""
    name = import_name(package)
    third_party = [
        m for m in added_by(f"import {name}") if m.split(".")[0] not in sys.stdlib_module_names
    ]
    assert set(third_party) <= {name, "liger_core", "liger_core.exports"}


def test_added_modules_are_seen() -> None:
    assert "wave" in added_by("import wave")


@pytest.mark.parametrize("package", [*KERNEL_PACKAGES, "liger-core", "liger-hf"])
def test_public_names_load_without_triton(package: str) -> None:
    run(BLOCKED + LOAD.format(import_name(package)))


def test_triton_is_blocked() -> None:
    with pytest.raises(AssertionError, match="import of triton halted"):
        run(BLOCKED + "import triton")
