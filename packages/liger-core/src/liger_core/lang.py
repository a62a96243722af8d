"""Triton and its language, or stand-ins that let kernel files be imported where Triton is not
installed.
"""

import importlib
import os
from importlib.util import find_spec
from typing import Any

__all__ = ["HAS_TRITON", "INTERPRET", "tl", "triton"]


class _Absent:
    """Stands for `triton` and `triton.language`: decorators and annotations are accepted, launches
    are not.
    """

    def jit(self, fn: Any) -> "_Absent":
        return self

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **kwargs: object) -> "_Absent":
        return self

    def __getitem__(self, grid: object) -> Any:
        raise ModuleNotFoundError("this kernel needs Triton: pip install triton")


HAS_TRITON = find_spec("triton") is not None
triton: Any = importlib.import_module("triton") if HAS_TRITON else _Absent()
tl: Any = importlib.import_module("triton.language") if HAS_TRITON else triton

# Triton reads the same variable when a kernel is decorated: CPU tensors then run through kernels.
_VARIABLE = os.environ.get("TRITON_INTERPRET", "0").lower()
INTERPRET = HAS_TRITON and _VARIABLE in ("1", "true", "on", "y", "yes")
