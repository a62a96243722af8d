"""Megatron-Core on the Liger packages: layers to put into a spec, and one function that patches."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .cross_entropy import LigerMegatronCrossEntropy as LigerMegatronCrossEntropy
    from .monkey_patch import apply_liger_kernel_to_megatron as apply_liger_kernel_to_megatron
    from .rms_norm import LigerMegatronRMSNorm as LigerMegatronRMSNorm
    from .swiglu import LigerMegatronSwiGLU as LigerMegatronSwiGLU

__all__ = lazy_exports(
    __name__,
    {
        "cross_entropy": ("LigerMegatronCrossEntropy",),
        "monkey_patch": ("apply_liger_kernel_to_megatron",),
        "rms_norm": ("LigerMegatronRMSNorm",),
        "swiglu": ("LigerMegatronSwiGLU",),
    },
)
