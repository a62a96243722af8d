"""Gated linear units: SwiGLU and GeGLU."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .glu import (
        GLU as GLU,
        GeGLU as GeGLU,
        SwiGLU as SwiGLU,
        geglu as geglu,
        glu as glu,
        swiglu as swiglu,
    )

__version__ = "0.1.0"
__all__ = lazy_exports(__name__, {"glu": ("GLU", "GeGLU", "SwiGLU", "geglu", "glu", "swiglu")})
