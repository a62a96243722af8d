"""Gated linear units, softmax, sparsemax."""

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
    from .glu_linear import GLULinear as GLULinear, glu_linear as glu_linear
    from .relu_squared import (
        ReLUSquared as ReLUSquared,
        relu_squared as relu_squared,
    )
    from .softmax import Softmax as Softmax, softmax as softmax
    from .sparsemax import Sparsemax as Sparsemax, sparsemax as sparsemax
    from .tiled_mlp import (
        TiledMLP as TiledMLP,
        tiled_mlp as tiled_mlp,
    )

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {
        "glu": ("GLU", "GeGLU", "SwiGLU", "geglu", "glu", "swiglu"),
        "glu_linear": ("GLULinear", "glu_linear"),
        "relu_squared": ("ReLUSquared", "relu_squared"),
        "softmax": ("Softmax", "softmax"),
        "sparsemax": ("Sparsemax", "sparsemax"),
        "tiled_mlp": ("TiledMLP", "tiled_mlp"),
    },
)
