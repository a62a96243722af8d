"""Not yet: liger-lab will have it."""

from ..missing import missing_class

__all__ = [
    "LigerFusedNeighborhoodAttention",
    "LigerFusedNeighborhoodAttentionConfig",
    "LigerFusedNeighborhoodAttentionLayer",
]

LigerFusedNeighborhoodAttention = missing_class("LigerFusedNeighborhoodAttention", "liger-lab")
LigerFusedNeighborhoodAttentionConfig = missing_class(
    "LigerFusedNeighborhoodAttentionConfig", "liger-lab"
)
LigerFusedNeighborhoodAttentionLayer = missing_class(
    "LigerFusedNeighborhoodAttentionLayer", "liger-lab"
)
