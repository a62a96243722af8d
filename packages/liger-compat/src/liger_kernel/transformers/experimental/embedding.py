"""Not yet: liger-lab will have it."""

from ...missing import missing_class

__all__ = ["LigerEmbedding"]

LigerEmbedding = missing_class("LigerEmbedding", "liger-lab")
