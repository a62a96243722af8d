"""The autograd Functions of the library, by name and in submodules such as `ops.rms_norm`.

What the library's `<op>_forward` and `<op>_backward` launch is not here: the Liger packages have
launchers of their own.
"""

import importlib.machinery
import sys
import types
from typing import TYPE_CHECKING, Any

from ..missing import missing_class
from ..transformers.grpo_loss import fused_selective_log_softmax
from .functions import TABLE, apply_tiled_mlp

if TYPE_CHECKING:
    # all of the names are generated
    def __getattr__(name: str) -> Any: ...


# submodule -> Functions that have no counterpart yet, and the package that will have them
LATER = {
    "attn_res": (("LigerAttnResFunction",), "liger-lab"),
    "fused_moe": (("LigerFusedMoEFunction",), "liger-moe"),
    "fused_neighborhood_attention": (("LigerFusedNeighborhoodAttentionFunction",), "liger-lab"),
    "mhc": (
        ("LigerMHCCoeffsFunction", "LigerMHCPostResFunction", "LigerMHCPreFunction"),
        "liger-lab",
    ),
    "multi_token_attention": (("LigerMultiTokenAttentionFunction",), "liger-lab"),
    "experimental": (("LigerEmbeddingFunction",), "liger-lab"),
}


def _function(name: str, apply: Any) -> type:
    return type(name, (), {"apply": staticmethod(apply), "__doc__": apply.__doc__})


def _add(where: str, name: str, value: Any) -> None:
    """As a name of this package, and of its submodule, which is made here."""
    full = f"{__name__}.{where}"
    if full not in sys.modules:
        module = types.ModuleType(full, __doc__)
        module.__spec__ = importlib.machinery.ModuleSpec(full, None)
        sys.modules[full] = globals()[where] = module
    globals()[name] = value
    setattr(sys.modules[full], name, value)


for (_where, _name), _apply in TABLE.items():
    _add(_where, _name, _function(_name, _apply))
for _where, (_names, _package) in LATER.items():
    for _name in _names:
        _add(_where, _name, missing_class(_name, _package))
_add("tiled_mlp", "apply_tiled_mlp", apply_tiled_mlp)
_add("grpo_loss", "fused_selective_log_softmax", fused_selective_log_softmax)
