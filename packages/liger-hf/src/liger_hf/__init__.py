"""Patch transformers models with the Liger kernels: apply, revert, report."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .patch import (
        applied as applied,
        apply as apply,
        explain as explain,
        report as report,
        revert as revert,
    )
    from .reporting import Report as Report

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {"patch": ("applied", "apply", "explain", "report", "revert"), "reporting": ("Report",)},
)
