"""Kahneman-Tversky optimisation."""

from collections.abc import Mapping

from liger_posttrain import LinearKTOLoss
from torch import Tensor, nn

__all__ = ["LigerFusedLinearKTOFunction", "LigerFusedLinearKTOLoss", "liger_fused_linear_kto"]


class KTO(LinearKTOLoss):
    """Hands out sums over responses, where the loss itself gives means."""

    def metrics(
        self, aux: Mapping[str, Tensor], counts: Tensor, desirable: Tensor,
        baseline: float | Tensor | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        logits = (aux["logits"] * counts).sum(-1)
        of_responses = {"logps": aux["logps"], "logits": logits, "rewards": aux["rewards"]}
        return {
            f"{name}/{side}": values.where(of_side, 0.0).sum()
            for name, values in of_responses.items()
            for side, of_side in (("chosen", desirable), ("rejected", ~desirable))
        }


def liger_fused_linear_kto(
    _input: Tensor, weight: Tensor, target: Tensor, preference_labels: Tensor | None,
    bias: Tensor | None = None, ref_input: Tensor | None = None,
    ref_weight: Tensor | None = None, ref_bias: Tensor | None = None, kl: Tensor | None = None,
    ignore_index: int = -100, beta: float = 0.1, compiled: bool = True, use_ref_model: bool = True,
    average_log_prob: bool = False, chunk_size: int = 1,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """`liger_posttrain.LinearKTOLoss` of responses [B, T, H], labelled [B], and a number `kl`.

    Metrics are sums over the chosen and over the rejected responses: two of log-probabilities, two
    of logits, two of rewards.
    """
    assert preference_labels is not None, "preference_labels are needed"
    if kl is not None and kl.numel() != 1:
        raise ValueError(f"kl {tuple(kl.shape)} must be one number, the same for all responses")
    loss = KTO(
        beta=beta, reference_free=not use_ref_model, average_log_prob=average_log_prob,
        ignore_index=ignore_index, statistics=("mean_logits",),
    )  # fmt: skip
    total, found = loss(
        _input, weight, target, desirable=preference_labels.bool(), linear_bias=bias,
        baseline=0.0 if kl is None else kl.reshape(()),
        ref_input=ref_input if use_ref_model else None,
        ref_weight=ref_weight if use_ref_model else None,
        ref_bias=ref_bias if use_ref_model else None,
    )  # fmt: skip
    V = weight.shape[0]
    return total, tuple(
        found[f"{name}/{side}"] * (V if name == "logits" else 1)
        for name in ("logps", "logits", "rewards")
        for side in ("chosen", "rejected")
    )


class LigerFusedLinearKTOFunction:
    apply = staticmethod(liger_fused_linear_kto)


class LigerFusedLinearKTOLoss(nn.Module):
    """`liger_fused_linear_kto` with fixed options, called with the hidden states first."""

    def __init__(
        self, ignore_index: int = -100, beta: float = 0.1, compiled: bool = True,
        use_ref_model: bool = False, average_log_prob: bool = False, chunk_size: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.ignore_index, self.beta, self.use_ref_model = ignore_index, beta, use_ref_model
        self.average_log_prob, self.compiled = average_log_prob, compiled
        self.chunk_size = chunk_size

    def forward(
        self, _input: Tensor, lin_weight: Tensor, target: Tensor, bias: Tensor | None = None,
        preference_labels: Tensor | None = None, ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None, ref_bias: Tensor | None = None,
        kl: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
        return liger_fused_linear_kto(
            _input, lin_weight, target, preference_labels, bias, ref_input, ref_weight, ref_bias,
            kl, self.ignore_index, self.beta, self.compiled, self.use_ref_model,
            self.average_log_prob, self.chunk_size,
        )  # fmt: skip
