"""Not yet: liger-lab will have it."""

from ..missing import missing_class

__all__ = ["LigerMultiTokenAttention"]

LigerMultiTokenAttention = missing_class("LigerMultiTokenAttention", "liger-lab")
