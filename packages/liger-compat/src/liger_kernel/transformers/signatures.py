"""Flags of the functions that patch models: `apply_liger_kernel_to_<name>` and their model types.

Pure data. Tools read the signatures with `inspect` and pass the flags they find there.
"""

import inspect

__all__ = ["MODEL_TYPES", "SIGNATURES", "signature"]

# in order, separated by blanks; off by default with a minus
LLAMA = "rope -cross_entropy fused_linear_cross_entropy rms_norm swiglu model"
GEMMA = "rope -cross_entropy fused_linear_cross_entropy rms_norm geglu model"
NO_ROPE = f"-{LLAMA}"
NO_SWIGLU = LLAMA.replace("swiglu", "-swiglu")
VISION_FIRST = "rope -cross_entropy fused_linear_cross_entropy layer_norm rms_norm"
TEXT_INSIDE = "-cross_entropy fused_linear_cross_entropy rms_norm layer_norm model **kwargs"

# name -> its flags
SIGNATURES = {
    "deepseek_v2": NO_ROPE,
    "deepseek_v3": NO_ROPE,
    "deepseek_v4": f"-{NO_SWIGLU}",
    "exaone4": LLAMA,
    "falcon_h1": LLAMA,
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3": f"{VISION_FIRST} geglu model",
    "gemma3_text": GEMMA,
    "gemma4": f"-{VISION_FIRST} geglu model".replace("layer_norm", "-layer_norm"),
    "gemma4_text": f"-{GEMMA}",
    "glm4": NO_ROPE,
    "glm4v": NO_ROPE,
    "glm4v_moe": NO_ROPE,
    "gpt_oss": NO_SWIGLU,
    "granite": "rope cross_entropy -fused_linear_cross_entropy rms_norm swiglu model",
    "hunyuan_v1_dense": LLAMA,
    "hunyuan_v1_moe": LLAMA,
    "internvl": TEXT_INSIDE,
    "llama": LLAMA,
    "llama4": f"{LLAMA} layer_norm",
    "llava": "-cross_entropy fused_linear_cross_entropy model **kwargs",
    "ministral": LLAMA,
    "mistral": LLAMA,
    "mixtral": LLAMA,
    "mllama": f"{VISION_FIRST} swiglu model",
    "muse_glimmer": f"{VISION_FIRST} swiglu model",
    "nemotron": "relu_squared -cross_entropy fused_linear_cross_entropy model **kwargs",
    "olmo2": LLAMA,
    "olmo3": LLAMA,
    "paligemma": f"{VISION_FIRST} geglu model",
    "phi3": LLAMA,
    "pixtral": "rope rms_norm swiglu model",
    "qwen2": LLAMA,
    "qwen2_5_vl": LLAMA,
    "qwen2_vl": LLAMA.replace("rms_norm", "rms_norm layer_norm"),
    "qwen3": LLAMA,
    "qwen3_5": NO_ROPE,
    "qwen3_5_moe": NO_ROPE,
    "qwen3_moe": LLAMA,
    "qwen3_next": NO_ROPE,
    "qwen3_vl": NO_SWIGLU,
    "qwen3_vl_moe": LLAMA,
    "smollm3": LLAMA,
    "smolvlm": TEXT_INSIDE,
}
# model types beside those of the same name as a function
PARTS = {
    "llama4_text": "llama4",
    "mllama_text_model": "mllama",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen2_vl_text": "qwen2_vl",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_text": "qwen3_5",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "qwen3_vl_text": "qwen3_vl",
}
# model type -> the name of its function
MODEL_TYPES = {**{name: name for name in SIGNATURES}, **PARTS}


def signature(flags: str) -> inspect.Signature:
    """That of a function with these flags."""
    parameters = []
    for flag in flags.split():
        if flag.startswith("**"):
            parameters.append(inspect.Parameter(flag[2:], inspect.Parameter.VAR_KEYWORD))
            continue
        default = None if flag == "model" else not flag.startswith("-")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter(flag.removeprefix("-"), kind, default=default))
    return inspect.Signature(parameters)
