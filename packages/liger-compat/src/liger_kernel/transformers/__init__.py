"""Modules, functions and patches for transformers models."""

import importlib.util
from typing import TYPE_CHECKING, Any

from liger_core import lazy_exports

from .signatures import MODEL_TYPES

if TYPE_CHECKING:
    # many of the names are generated
    def __getattr__(name: str) -> Any: ...


# submodule -> what it defines that is a name of this package too
_EXPORTS = {
    "auto_model": ("AutoLigerKernelForCausalLM",),
    "cross_entropy": ("LigerCrossEntropyLoss",),
    "dyt": ("LigerDyT",),
    "fused_add_rms_norm": ("LigerFusedAddRMSNorm",),
    "fused_ce_tvd": ("LigerFusedCETVDLoss",),
    "fused_linear_cross_entropy": ("LigerFusedLinearCrossEntropyLoss",),
    "fused_linear_jsd": ("LigerFusedLinearJSD",),
    "fused_linear_kl_div": ("LigerFusedLinearKLDivLoss",),
    "geglu": ("LigerGEGLUMLP",),
    "group_norm": ("LigerGroupNorm",),
    "jsd": ("LigerJSD",),
    "kl_div": ("LigerKLDIVLoss",),
    "layer_norm": ("LigerLayerNorm",),
    "llama4_rope": ("liger_llama4_text_rotary_pos_emb", "liger_llama4_vision_rotary_pos_emb"),
    "mhc": ("LigerMHC",),
    "mlp": ("LigerFalconH1MLP", "LigerMLP"),
    "modulated_rms_norm": ("LigerModulatedRMSNorm",),
    "monkey_patch": (
        "_apply_liger_kernel",
        "_apply_liger_kernel_to_instance",
        "MODEL_TYPE_TO_APPLY_LIGER_FN",
        *(f"apply_liger_kernel_to_{name}" for name in MODEL_TYPES),
    ),
    "multi_token_attention": ("LigerMultiTokenAttention",),
    "poly_norm": ("LigerPolyNorm",),
    "qwen2vl_mrope": ("liger_multimodal_rotary_pos_emb",),
    "relu_squared": ("LigerReLUSquared",),
    "rms_norm": (
        "LigerRMSNorm",
        "LigerRMSNormForMuseGlimmer",
        "LigerRMSNormForMuseGlimmerTextCentered",
    ),
    "rope": ("liger_rotary_pos_emb",),
    "softmax": ("LigerSoftmax",),
    "sparsemax": ("LigerSparsemax",),
    "swiglu": (
        "LigerBlockSparseTop2MLP",
        "LigerExperts",
        "LigerFalconH1SwiGLUMLP",
        "LigerPhi3SwiGLUMLP",
        "LigerQwen3MoeSwiGLUMLP",
        "LigerSwiGLUMLP",
        "LigerSwiGLUMLPForMuseGlimmer",
    ),
    "tiled_mlp": ("LigerTiledGEGLUMLP", "LigerTiledSwiGLUMLP"),
    "tvd": ("LigerTVDLoss",),
    "vocab_parallel_cross_entropy": ("LigerVocabParallelCrossEntropy",),
}
__all__ = [*lazy_exports(__name__, _EXPORTS), "is_transformers_available"]


def is_transformers_available() -> bool:
    return importlib.util.find_spec("transformers") is not None
