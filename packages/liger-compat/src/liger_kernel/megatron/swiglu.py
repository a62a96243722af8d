"""SwiGLU with the arguments of Megatron's `bias_swiglu_impl`."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..transformers.functional import liger_fused_gate_up_swiglu

__all__ = ["LigerMegatronSwiGLU", "unsupported"]

logger = logging.getLogger(__name__)


def unsupported(bias: Tensor | None, fp8_input_store: bool, cpu_offload_input: bool) -> str:
    """What of a call only Megatron's own function has; or empty."""
    if bias is not None:
        return "a bias"
    if fp8_input_store:
        return "inputs stored in fp8"
    return "inputs offloaded to the CPU" if cpu_offload_input else ""


class LigerMegatronSwiGLU(nn.Module):
    """`liger_activations.swiglu` of gate and up in one tensor, [T, 2 N] or [S, B, 2 N].

    Args:
        fallback_impl: Megatron's function, for calls that need it; RuntimeError without.
        in_place: accepted, without effect.
    """

    def __init__(self, fallback_impl: Callable[..., Tensor] | None = None, in_place: bool = False):
        super().__init__()
        self.fallback_impl, self.in_place = fallback_impl, in_place
        self._logged: set[str] = set()

    def forward(
        self, input: Tensor, bias: Tensor | None = None, fp8_input_store: bool = False,
        cpu_offload_input: bool = False,
    ) -> Any:  # fmt: skip
        reason = unsupported(bias, fp8_input_store, cpu_offload_input)
        if reason:
            if self.fallback_impl is None:
                raise RuntimeError(f"LigerMegatronSwiGLU has no {reason}: give fallback_impl")
            if reason not in self._logged:
                self._logged.add(reason)
                logger.info("SwiGLU with %s is left to Megatron", reason)
            return self.fallback_impl(input, bias, fp8_input_store, cpu_offload_input)
        if input.ndim not in (2, 3) or input.shape[-1] % 2:
            raise ValueError(f"input must be [T, 2 N] or [S, B, 2 N]: {tuple(input.shape)}")
        return liger_fused_gate_up_swiglu(input)
