"""Normalisation over the last dimension: RMSNorm."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .rms_norm import RMSNorm as RMSNorm, rms_norm as rms_norm

__version__ = "0.1.0"
__all__ = lazy_exports(__name__, {"rms_norm": ("RMSNorm", "rms_norm")})
