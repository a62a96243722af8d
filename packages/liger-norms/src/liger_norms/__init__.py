"""Normalisation: RMSNorm and its relatives, LayerNorm, GroupNorm, DyT, PolyNorm."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .dyt import DyT as DyT, dyt as dyt
    from .fused_add_norm import (
        FusedAddLayerNorm as FusedAddLayerNorm,
        FusedAddRMSNorm as FusedAddRMSNorm,
        fused_add_layer_norm as fused_add_layer_norm,
        fused_add_rms_norm as fused_add_rms_norm,
    )
    from .gated_rms_norm import GatedRMSNorm as GatedRMSNorm, gated_rms_norm as gated_rms_norm
    from .group_norm import GroupNorm as GroupNorm, group_norm as group_norm
    from .layer_norm import LayerNorm as LayerNorm, layer_norm as layer_norm
    from .modulated_norm import (
        ModulatedLayerNorm as ModulatedLayerNorm,
        ModulatedRMSNorm as ModulatedRMSNorm,
        modulated_layer_norm as modulated_layer_norm,
        modulated_rms_norm as modulated_rms_norm,
    )
    from .poly_norm import PolyNorm as PolyNorm, poly_norm as poly_norm
    from .rms_norm import RMSNorm as RMSNorm, rms_norm as rms_norm

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {
        "dyt": ("DyT", "dyt"),
        "fused_add_norm": (
            "FusedAddLayerNorm",
            "FusedAddRMSNorm",
            "fused_add_layer_norm",
            "fused_add_rms_norm",
        ),
        "gated_rms_norm": ("GatedRMSNorm", "gated_rms_norm"),
        "group_norm": ("GroupNorm", "group_norm"),
        "layer_norm": ("LayerNorm", "layer_norm"),
        "modulated_norm": (
            "ModulatedLayerNorm",
            "ModulatedRMSNorm",
            "modulated_layer_norm",
            "modulated_rms_norm",
        ),
        "poly_norm": ("PolyNorm", "poly_norm"),
        "rms_norm": ("RMSNorm", "rms_norm"),
    },
)
