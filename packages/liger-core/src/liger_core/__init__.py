"""What the Liger kernel packages share: devices, Triton utilities, testing and benchmarking."""

from typing import TYPE_CHECKING

from liger_core.exports import lazy_exports

if TYPE_CHECKING:
    from .debug import debug as debug

__version__ = "0.1.0"
__all__ = ["lazy_exports", *lazy_exports(__name__, {"debug": ("debug",)})]
