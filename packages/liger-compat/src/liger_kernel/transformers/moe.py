"""Not yet: liger-moe will have it."""

from ..missing import missing_class

__all__ = ["LigerExpertParallelFusedMoe"]

LigerExpertParallelFusedMoe = missing_class("LigerExpertParallelFusedMoe", "liger-moe")
