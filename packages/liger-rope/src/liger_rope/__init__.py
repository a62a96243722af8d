"""Rotary position embeddings."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .rope import rope as rope

__version__ = "0.1.0"
__all__ = lazy_exports(__name__, {"rope": ("rope",)})
