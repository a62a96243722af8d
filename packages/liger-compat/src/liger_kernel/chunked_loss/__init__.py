"""Preference, policy and distillation losses of a linear head, on `liger_posttrain`.

`compiled` and `chunk_size` are accepted, without effect: chunks are of tokens, and nothing is
compiled. Mean logits in the returned metrics are those of the tokens that count.
"""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .cosine_similarity_loss import (
        LigerFusedLinearCosineSimilarityLoss as LigerFusedLinearCosineSimilarityLoss,
    )
    from .cpo_loss import LigerFusedLinearCPOLoss as LigerFusedLinearCPOLoss
    from .dpo_loss import LigerFusedLinearDPOLoss as LigerFusedLinearDPOLoss
    from .grpo_loss import LigerFusedLinearGRPOLoss as LigerFusedLinearGRPOLoss
    from .jsd_loss import LigerFusedLinearJSDLoss as LigerFusedLinearJSDLoss
    from .kto_loss import LigerFusedLinearKTOLoss as LigerFusedLinearKTOLoss
    from .orpo_loss import LigerFusedLinearORPOLoss as LigerFusedLinearORPOLoss
    from .simpo_loss import LigerFusedLinearSimPOLoss as LigerFusedLinearSimPOLoss

__all__ = lazy_exports(
    __name__,
    {
        "cosine_similarity_loss": ("LigerFusedLinearCosineSimilarityLoss",),
        "cpo_loss": ("LigerFusedLinearCPOLoss",),
        "dpo_loss": ("LigerFusedLinearDPOLoss",),
        "grpo_loss": ("LigerFusedLinearGRPOLoss",),
        "jsd_loss": ("LigerFusedLinearJSDLoss",),
        "kto_loss": ("LigerFusedLinearKTOLoss",),
        "orpo_loss": ("LigerFusedLinearORPOLoss",),
        "simpo_loss": ("LigerFusedLinearSimPOLoss",),
    },
)
