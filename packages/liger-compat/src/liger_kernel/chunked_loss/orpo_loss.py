"""Odds ratio preference optimisation."""

from liger_posttrain import LinearORPOLoss
from torch import Tensor, nn

from .fused_linear_preference import EachPair, outputs

__all__ = ["LigerFusedLinearORPOFunction", "LigerFusedLinearORPOLoss", "liger_fused_linear_orpo"]


class ORPO(LinearORPOLoss, EachPair):
    pass


def liger_fused_linear_orpo(
    _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None,
    ignore_index: int = -100, beta: float = 0.1, compute_nll_loss: bool = True,
    nll_target: Tensor | None = None, compiled: bool = True, chunk_size: int = 1,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """`liger_posttrain.LinearORPOLoss` of 2 N rows [2 N, T, H], the chosen ones first.

    `nll_target` are the targets of the negative log-likelihood, those of the chosen responses and
    more. The last metrics are the mean log odds ratio and the mean log odds of the chosen.
    """
    loss = ORPO(
        beta=beta, nll_weight=1.0 if compute_nll_loss else 0.0, ignore_index=ignore_index,
        statistics=("mean_logits",),
    )  # fmt: skip
    return outputs(
        loss, _input, weight, target, linear_bias=bias,
        nll_target=nll_target if compute_nll_loss else None,
        more=("log_odds_ratio", "log_odds_chosen"),
    )  # fmt: skip


class LigerFusedLinearORPOFunction:
    apply = staticmethod(liger_fused_linear_orpo)


class LigerFusedLinearORPOLoss(nn.Module):
    """`liger_fused_linear_orpo` with fixed options, called with the head's weight first."""

    def __init__(
        self, ignore_index: int = -100, beta: float = 0.1, compute_nll_loss: bool = True,
        compiled: bool = True, chunk_size: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.ignore_index, self.beta, self.compute_nll_loss = ignore_index, beta, compute_nll_loss
        self.compiled, self.chunk_size = compiled, chunk_size

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None,
        nll_target: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
        return liger_fused_linear_orpo(
            _input, lin_weight, target, bias, self.ignore_index, self.beta, self.compute_nll_loss,
            nll_target, self.compiled, self.chunk_size,
        )  # fmt: skip
