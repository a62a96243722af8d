"""Testing of ops: `OpSpec` rows, one generic suite, a checking interpreter, a compile check."""

from typing import TYPE_CHECKING

from liger_core.exports import lazy_exports

if TYPE_CHECKING:
    from .numerics import assert_accurate as assert_accurate
    from .spec import (
        BenchCase as BenchCase,
        Builder as Builder,
        OpSpec as OpSpec,
        load_module as load_module,
        load_specs as load_specs,
        replace as replace,
    )
    from .suite import OpSuite as OpSuite

__all__ = lazy_exports(
    __name__,
    {
        "numerics": ("assert_accurate",),
        "spec": ("BenchCase", "Builder", "OpSpec", "load_module", "load_specs", "replace"),
        "suite": ("OpSuite",),
    },
)
