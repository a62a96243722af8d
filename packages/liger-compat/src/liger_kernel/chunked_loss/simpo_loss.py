"""Simple preference optimisation."""

from liger_posttrain import LinearSimPOLoss
from torch import Tensor, nn

from .fused_linear_preference import EachPair, outputs

__all__ = ["LigerFusedLinearSimPOFunction", "LigerFusedLinearSimPOLoss", "liger_fused_linear_simpo"]


class SimPO(LinearSimPOLoss, EachPair):
    pass


def liger_fused_linear_simpo(
    _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None,
    ignore_index: int = -100, beta: float = 0.1, alpha: float = 1.0, label_smoothing: float = 0.0,
    compute_nll_loss: bool = False, compiled: bool = True, gamma: float = 0.5, chunk_size: int = 1,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """`liger_posttrain.LinearSimPOLoss` of 2 N rows [2 N, T, H], the chosen ones first.

    `alpha` is the weight of the negative log-likelihood where it is computed.
    """
    loss = SimPO(
        beta=beta, gamma=gamma, nll_weight=alpha if compute_nll_loss else 0.0,
        label_smoothing=label_smoothing, ignore_index=ignore_index, statistics=("mean_logits",),
    )  # fmt: skip
    return outputs(loss, _input, weight, target, linear_bias=bias)


class LigerFusedLinearSimPOFunction:
    apply = staticmethod(liger_fused_linear_simpo)


class LigerFusedLinearSimPOLoss(nn.Module):
    """`liger_fused_linear_simpo` with fixed options, called with the head's weight first."""

    def __init__(
        self, ignore_index: int = -100, beta: float = 0.1, alpha: float = 1.0,
        label_smoothing: float = 0.0, compute_nll_loss: bool = True, compiled: bool = True,
        gamma: float = 0.5, chunk_size: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.ignore_index, self.beta, self.alpha, self.gamma = ignore_index, beta, alpha, gamma
        self.label_smoothing, self.compute_nll_loss = label_smoothing, compute_nll_loss
        self.compiled, self.chunk_size = compiled, chunk_size

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return liger_fused_linear_simpo(
            _input, lin_weight, target, bias, self.ignore_index, self.beta, self.alpha,
            self.label_smoothing, self.compute_nll_loss, self.compiled, self.gamma,
        )  # fmt: skip
