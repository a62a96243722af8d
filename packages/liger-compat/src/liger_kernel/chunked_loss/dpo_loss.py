"""Direct preference optimisation."""

from typing import Any

from liger_posttrain import LinearDPOLoss
from liger_posttrain.preference import PAIR_LOSSES
from torch import Tensor, nn

from .fused_linear_preference import EachPair, outputs

__all__ = ["LigerFusedLinearDPOFunction", "LigerFusedLinearDPOLoss", "liger_fused_linear_dpo"]


class DPO(LinearDPOLoss, EachPair):
    pass


def liger_fused_linear_dpo(
    _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None,
    ref_input: Tensor | None = None, ref_weight: Tensor | None = None,
    ref_bias: Tensor | None = None, ignore_index: int = -100, beta: float = 0.1,
    compute_nll_loss: bool = False, compiled: bool = True, use_ref_model: bool = True,
    average_log_prob: bool = False, chunk_size: int = 1, loss_type: str = "sigmoid",
    label_smoothing: float = 0.0, discopop_tau: float = 0.05, alpha: float = 1.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """`liger_posttrain.LinearDPOLoss` of 2 N rows [2 N, T, H], the chosen ones first.

    `alpha` is the weight of the negative log-likelihood where it is computed. `label_smoothing`
    and `discopop_tau` act where the loss type has them, the first also on "sigmoid".
    """
    _check(loss_type)
    takes = PAIR_LOSSES[loss_type].formula.options
    given: dict[str, Any] = {"label_smoothing": label_smoothing, "discopop_tau": discopop_tau}
    loss = DPO(
        beta=beta, loss_type=loss_type, reference_free=not use_ref_model,
        nll_weight=alpha if compute_nll_loss else 0.0, average_log_prob=average_log_prob,
        ignore_index=ignore_index, statistics=("mean_logits",),
        **{name: value for name, value in given.items() if name in takes},
    )  # fmt: skip
    reference: dict[str, Any] = {}
    if use_ref_model:
        reference = {"ref_input": ref_input, "ref_weight": ref_weight, "ref_bias": ref_bias}
    return outputs(loss, _input, weight, target, linear_bias=bias, **reference)


def _check(loss_type: str) -> None:
    if loss_type not in PAIR_LOSSES:
        raise ValueError(f"loss_type must be one of {', '.join(PAIR_LOSSES)}, not {loss_type!r}")


class LigerFusedLinearDPOFunction:
    apply = staticmethod(liger_fused_linear_dpo)


class LigerFusedLinearDPOLoss(nn.Module):
    """`liger_fused_linear_dpo` with fixed options, called with the head's weight first.

    ValueError for an unknown `loss_type`.
    """

    def __init__(
        self, ignore_index: int = -100, beta: float = 0.1, alpha: float = 1.0,
        compute_nll_loss: bool = False, compiled: bool = True, use_ref_model: bool = True,
        average_log_prob: bool = False, chunk_size: int = 1, loss_type: str = "sigmoid",
        label_smoothing: float = 0.0, discopop_tau: float = 0.05,
    ):  # fmt: skip
        super().__init__()
        _check(loss_type)
        self.ignore_index, self.beta, self.alpha = ignore_index, beta, alpha
        self.compute_nll_loss, self.use_ref_model = compute_nll_loss, use_ref_model
        self.average_log_prob, self.loss_type = average_log_prob, loss_type
        self.label_smoothing, self.discopop_tau = label_smoothing, discopop_tau
        self.compiled, self.chunk_size = compiled, chunk_size

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None,
        ref_input: Tensor | None = None, ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
        return liger_fused_linear_dpo(
            _input, lin_weight, target, bias, ref_input, ref_weight, ref_bias, self.ignore_index,
            self.beta, self.compute_nll_loss, self.compiled, self.use_ref_model,
            self.average_log_prob, self.chunk_size, self.loss_type, self.label_smoothing,
            self.discopop_tau, self.alpha,
        )  # fmt: skip
