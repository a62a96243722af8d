"""Generalised Jensen-Shannon divergence."""

from torch import Tensor, nn

from .functional_divergences import liger_jsd

__all__ = ["LigerJSD"]


class LigerJSD(nn.Module):
    """`liger_jsd` of log-probabilities of the student, then of the teacher."""

    def __init__(self, beta: float = 0.5, ignore_index: int = -100):
        super().__init__()
        self.beta, self.ignore_index = beta, ignore_index

    def forward(self, log_q: Tensor, log_p: Tensor, shift_labels: Tensor | None = None) -> Tensor:
        return liger_jsd(log_q, log_p, shift_labels, self.beta, self.ignore_index)
