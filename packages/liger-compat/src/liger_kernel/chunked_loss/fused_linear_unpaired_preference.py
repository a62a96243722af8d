"""The base class there is none of here: losses are functions of `liger_posttrain`."""

from ..missing import missing_class

__all__ = ["LigerFusedLinearUnpairedPreferenceBase"]

LigerFusedLinearUnpairedPreferenceBase = missing_class(
    "LigerFusedLinearUnpairedPreferenceBase", "liger-posttrain"
)
