"""Log-probabilities of labels under a linear head, without its logits.

    z = x W^T + b, scaled and capped;  log_probs = z_t - log(sum_j exp(z_j)), and further statistics

What losses of reinforcement learning, preference and distillation are functions of. Rows are taken
in chunks as by `linear_cross_entropy`. Their upstream gradients are known only in the backward: it
makes the logits of each chunk again, four matrix products in all. Logits that fitted one chunk are
kept instead: three products.

    x [M, H]; W [V, H]; b [V] or none; target and every statistic [M]
    M tokens, H hidden size, V vocabulary, C rows of a chunk
    memory beside the inputs: C V + M H + V H elements, and C V more where the logits are kept
"""

from collections.abc import Sequence

import torch
from liger_core.autograd import autocast
from torch import Tensor

from .arguments import check_head, check_range, check_target, is_static
from .log_probs import LogProbs, log_probs_ref, named, wanted
from .stats_op import head_stats

__all__ = ["linear_log_probs", "linear_log_probs_ref"]


def linear_log_probs_ref(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    **options,
) -> LogProbs:
    # how the work is cut does not change its result
    options = {name: value for name, value in options.items() if name != "chunk_bytes"}
    logits = torch.nn.functional.linear(input, linear_weight, linear_bias)
    return log_probs_ref(logits, target, **options)


def linear_log_probs(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    statistics: Sequence[str] = (), ignore_index: int = -100, softcap: float | None = None,
    logit_scale: float = 1.0, chunk_bytes: int | None = None,
) -> LogProbs:  # fmt: skip
    """Log-probability of each target under the head, and further statistics, without logits;
    differentiable with any upstream gradients.

    Args:
        input: hidden states x, [..., H]; float16, bfloat16, float32 or float64.
        linear_weight: W, [V, H], in the dtype of x; under autocast both are cast as by a linear
            layer.
        target: class indices, [...], int64 or int32.
        linear_bias: [V] or None.
        statistics, softcap, logit_scale: as in `log_probs`.
        ignore_index: targets that do not count, such as prompts and padding; where more than one in
            64 is such, their tokens are left out of every product.
        chunk_bytes: bytes of a chunk's logits, by default as in `linear_cross_entropy`. Tokens that
            count and whose logits fit one chunk need three products instead of four.

    Returns:
        `LogProbs`, each field in the shape of `target`, fp32 (fp64 for float64).

    Memory of forward and backward beside the inputs: C V + M H + V H elements for C rows a chunk,
    C V more where one chunk holds all; what is frozen is left out. Reading which tokens count takes
    one early synchronisation with the device; under CUDA-graph capture and torch.compile there is
    none, and every token is computed.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; an unknown statistic.
        TypeError: dtypes that do not fit.

    Source: derivatives in `row_stats`.
    """
    name = "linear_log_probs"
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_head(name, input, linear_weight, target, linear_bias)
    check_target(name, target, softcap, logit_scale, input.device)
    check_range(name, target, len(linear_weight), ignore_index)
    want = wanted(name, statistics)
    x, flat = input.reshape(-1, linear_weight.shape[1]), target.reshape(-1).contiguous()
    grad = torch.is_grad_enabled()
    need = [grad and t is not None and t.requires_grad for t in (x, linear_weight, linear_bias)]
    *stats, _, _ = head_stats(
        x, linear_weight, linear_bias, flat, want, need, ignore_index, softcap, float(logit_scale),
        chunk_bytes, is_static(x),
    )  # fmt: skip
    return named(stats, want, target.shape)
