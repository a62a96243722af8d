"""The objective of policy optimisation, of statistics of tokens however they were computed.

    loss = sum_it w_it (m_it c_it surrogate_it + beta kl_it) - entropy_coef sum_it b_it entropy_it

over tokens t of sequences i; w and b are weights of reductions, m masks off-policy sequences and
tokens of low entropy, c corrects for the sampler.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .f_divergence import LARGEST
from .importance import LEVELS, high_entropy_mask, off_policy_mask
from .kl import KL_ESTIMATORS, bias_corrected
from .linear import mean, mean_where
from .policy import SURROGATES

__all__ = ["PolicyObjective", "policy_metrics"]


@dataclass(frozen=True, eq=False)
class PolicyObjective:
    """Names in the tables of its parts, and numbers; the arguments of `LinearGRPOLoss`."""

    surrogate: str
    level: str
    options: Mapping[str, Any]
    beta: float = 0.0
    kl_estimator: str = "k3"
    use_bias_correction_kl: bool = False
    entropy_coef: float = 0.0
    top_entropy_quantile: float = 1.0
    off_policy_mask_threshold: float | None = None

    @property
    def needs_sequences(self) -> bool:
        named = SURROGATES[self.surrogate].loss.tensors
        return (
            self.level != "token" or "mask" in named or self.off_policy_mask_threshold is not None
        )

    def __call__(
        self, stats: Any, *, mask: Tensor, weights: Tensor, advantages: Tensor,
        old_log_probs: Tensor | None = None, ref_log_probs: Tensor | None = None,
        sampler_log_probs: Tensor | None = None, importance_sampling_ratio: Tensor | None = None,
        bonus: Tensor | None = None, entropy_threshold: Tensor | float | None = None,
        renormalize: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Losses of tokens [n], or of groups [n] of statistics [n, ..., T], and what is logged.

        All else is in the shape of the statistics; where the mask is false it must be finite.
        With `renormalize`, the weights of the bonus are those of a mean over the tokens that high
        entropy selects, all of which must be here.
        """
        log_probs = stats.log_probs
        old = log_probs.detach() if old_log_probs is None else old_log_probs
        log_ratio = log_probs - old
        # an infinite ratio would make a gradient of 0 NaN where it is clipped
        ratio = LEVELS[self.level](log_ratio, mask).clamp(max=LARGEST).exp()
        given = {
            "ratio": ratio, "log_ratio": log_ratio, "log_probs": log_probs, "mask": mask,
            "advantages": advantages, "importance_sampling_ratio": importance_sampling_ratio,
        }  # fmt: skip
        surrogate, logged = SURROGATES[self.surrogate]
        losses, aux = surrogate(given, self.options), logged(given, self.options)
        if self.off_policy_mask_threshold is not None:
            losses = losses * off_policy_mask(
                log_probs, old if sampler_log_probs is None else sampler_log_probs, advantages,
                mask, threshold=self.off_policy_mask_threshold,
            )  # fmt: skip
        if entropy_threshold is not None or self.top_entropy_quantile < 1.0:
            high = high_entropy_mask(
                stats.entropy, mask, quantile=self.top_entropy_quantile,
                threshold=entropy_threshold,
            )  # fmt: skip
            losses = losses * high
            if bonus is not None:
                bonus = high / high.sum().clamp(min=1) if renormalize else bonus * high
        corrects = "importance_sampling_ratio" in surrogate.tensors
        if importance_sampling_ratio is not None and not corrects:
            losses = losses * importance_sampling_ratio
        if self.beta != 0.0:
            if ref_log_probs is None:
                raise ValueError(f"PolicyObjective: beta {self.beta} needs ref_log_probs")
            kl = KL_ESTIMATORS[self.kl_estimator](log_probs, ref_log_probs)
            kl = bias_corrected(kl, ratio) if self.use_bias_correction_kl else kl
            losses, aux["kl"] = losses + self.beta * kl, kl
        losses = losses * weights
        if bonus is not None:
            losses = losses - self.entropy_coef * bonus * stats.entropy
        return losses if losses.ndim == 1 else losses.flatten(1).sum(-1), aux


def policy_metrics(aux: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Means over tokens [B, T], or over sequences [B, 1]; of the clipped ones also the extremes
    over sequences.
    """
    found = {}
    for name, x in aux.items():
        is_clip = name.startswith("clip_ratio/")
        overall = mean_where(x, mask) if x.shape == mask.shape else mean(x)
        found[f"{name}_mean" if is_clip else name] = overall
        if name in ("clip_ratio/low", "clip_ratio/high"):
            counted = mask if x.shape == mask.shape else mask.any(-1, keepdim=True)
            each = (x & counted).sum(-1) / counted.sum(-1)
            end, none = ("min", float("inf")) if name.endswith("low") else ("max", -float("inf"))
            # none of a sequence without tokens, also where there is no other
            each = torch.cat([each.nan_to_num(none), each.new_full((1,), none)])
            extreme = each.amin() if end == "min" else each.amax()
            found[f"{name}_{end}"] = extreme.masked_fill(extreme.isinf(), float("nan"))
    return found
