"""Not yet: liger-lab will have it."""

from .embedding import LigerEmbedding as LigerEmbedding

__all__ = ["LigerEmbedding"]
