"""Not yet: liger-lab will have it."""

from ..missing import missing_class

__all__ = ["LigerMHC"]

LigerMHC = missing_class("LigerMHC", "liger-lab")
