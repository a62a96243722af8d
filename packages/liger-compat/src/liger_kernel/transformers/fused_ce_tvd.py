"""Cross entropy and total variation distance of each token."""

from torch import Tensor, nn

from .functional_divergences import liger_fused_ce_tvd

__all__ = ["LigerFusedCETVDLoss"]


class LigerFusedCETVDLoss(nn.Module):
    """`liger_fused_ce_tvd`: both, for each token."""

    def __init__(self, ignore_index: int = -100):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        return liger_fused_ce_tvd(student_logits, teacher_logits, target, self.ignore_index)
