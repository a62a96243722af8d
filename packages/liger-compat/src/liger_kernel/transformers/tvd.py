"""Total variation distance."""

from torch import Tensor, nn

from .functional_divergences import liger_tvd

__all__ = ["LigerTVDLoss"]


class LigerTVDLoss(nn.Module):
    """`liger_tvd` of probabilities of the student, then of the teacher."""

    def __init__(self, reduction: str = "batchmean", ignore_index: int = -100):
        super().__init__()
        self.reduction, self.ignore_index = reduction, ignore_index

    def forward(self, p: Tensor, q: Tensor, shift_labels: Tensor | None = None) -> Tensor:
        return liger_tvd(p, q, shift_labels, self.reduction, self.ignore_index)
