"""Use of vendored files, for the tests beside this file."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses and triton look their module up there
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_alone(*command: str) -> None:
    """In a process where no Liger package can be imported."""
    code = """
import runpy, sys
class Block:
    def find_spec(name, *_):
        assert not name.startswith("liger_"), name
sys.meta_path.insert(0, Block)
for path in sys.argv[1:]:
    runpy.run_path(path, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
