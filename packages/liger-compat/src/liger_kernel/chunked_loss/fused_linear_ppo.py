"""The base class there is none of here: losses are functions of `liger_posttrain`."""

from ..missing import missing_class

__all__ = ["LigerFusedLinearPPOBase"]

LigerFusedLinearPPOBase = missing_class("LigerFusedLinearPPOBase", "liger-posttrain")
