"""Patch transformers models with the Liger kernels: apply, revert, report."""

from typing import TYPE_CHECKING, Any

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .auto import (
        AutoLigerKernelForCausalLM as AutoLigerKernelForCausalLM,
        AutoLigerKernelForImageTextToText as AutoLigerKernelForImageTextToText,
    )
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
    {
        "auto": ("AutoLigerKernelForCausalLM", "AutoLigerKernelForImageTextToText"),
        "patch": ("applied", "apply", "explain", "report", "revert"),
        "reporting": ("Report",),
    },
)


def __getattr__(name: str) -> Any:
    """apply_liger_kernel_to_<model type> and revert_liger_kernel_to_<model type>."""
    if not name.startswith(("apply_liger_kernel_to_", "revert_liger_kernel_to_")):
        raise AttributeError(name)
    from .families import function

    return function(name)
