"""One generic test suite for all ops. A package's `tests/test_ops.py` is

    from liger_core.testing import OpSuite, load_specs

    class TestOps(OpSuite):
        specs = load_specs(__file__)

Every `test_<property>` runs over the specs; ids read `rms_norm-bf16-3x77-offset=1.0`. The same
class tests the kernels in the interpreter (TRITON_INTERPRET=1), the PyTorch path (a CPU without it)
and the kernels on a GPU. A subclass adds properties of its own as methods decorated with one of
`per_case`, `per_option`, `per_spec`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from .contracts import Contracts
from .fuzz import Fuzz
from .gpu import Gpu
from .plans import Plans
from .selection import argument, cases
from .spec import OpSpec
from .values import Values

__all__ = ["OpSuite"]


class OpSuite(Values, Contracts, Fuzz, Plans, Gpu):
    """Subclass it with `specs`; see the module."""

    specs: ClassVar[Sequence[OpSpec]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        name = argument(metafunc.function)
        if name is None:
            return
        prop = metafunc.function.__name__.removeprefix("test_")
        params = []
        for spec in self.specs:
            reason = spec.skips.get(prop)
            marks = [pytest.mark.skip(reason=f"{spec.name}: {reason}")] if reason else []
            # one visible skip instead of one per case
            rows = [spec] if reason else cases(metafunc.function, spec)
            params += [
                pytest.param(row, id=getattr(row, "name", None) or str(row), marks=marks)
                for row in rows
            ]
        metafunc.parametrize(name, params)

    def test_skips_name_properties(self) -> None:
        for spec in self.specs:
            unknown = [
                n
                for n in spec.skips
                if not n.startswith("edge_") and not hasattr(self, f"test_{n}")
            ]
            assert not unknown, f"{spec.name}: skips of unknown properties {unknown}"
