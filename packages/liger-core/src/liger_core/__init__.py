"""What the Liger kernel packages share: devices, Triton utilities, testing and benchmarking."""

from liger_core.exports import lazy_exports

__version__ = "0.1.0"
__all__ = ["lazy_exports"]
