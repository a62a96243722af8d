"""Rotary position embeddings."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .complex_rope import complex_rope as complex_rope
    from .multimodal_rope import multimodal_rope as multimodal_rope
    from .rope import rope as rope

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {
        "complex_rope": ("complex_rope",),
        "multimodal_rope": ("multimodal_rope",),
        "rope": ("rope",),
    },
)
