"""The models of which a training step is measured, and the batch that they train on.

Real widths, few layers: what is measured is the step of a layer beside that of the head. A row of
`MODELS` is all that there is to a model.
"""

import importlib
import importlib.metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "VARIANTS", "Model", "Variant", "build", "compiled", "inputs", "load"]


class Variant(NamedTuple):
    """`patch`: liger-kernel, ours or none; `compiled`: the whole model, each of its layers, or
    nothing."""

    patch: str = ""
    compiled: str = ""


VARIANTS = {
    "eager": Variant(),
    "compile": Variant(compiled="model"),
    "compile-regions": Variant(compiled="layers"),
    "liger-kernel": Variant("liger-kernel"),
    "ours": Variant("ours"),
    "ours+compile": Variant("ours", "model"),
    "ours+compile-regions": Variant("ours", "layers"),
}
NOT_WHOLE = tuple(name for name in VARIANTS if VARIANTS[name].compiled != "model")


class Model(NamedTuple):
    """A class of transformers with the settings of its configuration.

    Attributes:
        small: settings that a CPU takes instead.
        image: patches of the image in each sequence, (time, height, width), of a model that sees;
            the second is for a CPU.
        variants: measured where the command line names none.
    """

    title: str
    kind: str
    settings: dict[str, Any]
    small: dict[str, Any]
    image: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    variants: tuple[str, ...] = NOT_WHOLE


TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "use_cache": False,
}
QWEN2_VL = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 4,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
    },
    "use_cache": False,
}  # fmt: skip
MODELS = {
    "llama": Model(
        title="4 layers of Llama-3-8B",
        kind="LlamaForCausalLM",
        settings=LLAMA,
        small=TINY,
        variants=tuple(VARIANTS),
    ),
    # as after `resize_token_embeddings`
    "llama-resized": Model(
        title="4 layers of Llama-3-8B, a token more in the vocabulary",
        kind="LlamaForCausalLM",
        settings=LLAMA | {"vocab_size": LLAMA["vocab_size"] + 1},
        small=TINY | {"vocab_size": TINY["vocab_size"] + 1},
        variants=("eager", "compile", "liger-kernel", "ours"),
    ),
    "qwen3-moe": Model(
        title="4 layers of Qwen3-30B-A3B, 128 experts",
        kind="Qwen3MoeForCausalLM",
        settings={
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "head_dim": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "use_cache": False,
        },
        small=TINY | {"moe_intermediate_size": 32, "num_experts": 8, "head_dim": 16},
    ),
    "gemma2": Model(
        title="4 layers of Gemma-2-9B",
        kind="Gemma2ForCausalLM",
        settings={
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "head_dim": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            "tie_word_embeddings": True,
            "use_cache": False,
        },
        small=TINY | {"head_dim": 16, "query_pre_attn_scalar": 16},
    ),
    "qwen2-vl": Model(
        title="Qwen2-VL-7B with 4 layers and 4 vision blocks, 784 image tokens a sequence",
        kind="Qwen2VLForConditionalGeneration",
        settings={"text_config": QWEN2_VL, "vision_config": {"depth": 4, "hidden_size": 3584}},
        small={
            "text_config": QWEN2_VL | TINY | {
                "rope_parameters": QWEN2_VL["rope_parameters"] | {"mrope_section": [4, 2, 2]}
            },
            "vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64},
            "vision_start_token_id": 507,
            "vision_end_token_id": 508,
            "image_token_id": 509,
            "video_token_id": 510,
        },
        # 784 x 784 pixels; four patches make a token
        image=((1, 56, 56), (1, 8, 4)),
    ),
}  # fmt: skip


def load(name: str, variant: str) -> tuple[Any, Any]:
    """The model's class and the library that patches it, imported."""
    import transformers

    kind, patch = getattr(transformers, MODELS[name].kind), VARIANTS[variant].patch
    if patch == "liger-kernel":
        # raises where it is not installed: liger-compat has the same import name
        importlib.metadata.version(patch)
    libraries = {"ours": "liger_hf", "liger-kernel": "liger_kernel.transformers"}
    return kind, importlib.import_module(libraries[patch]) if patch else None


def build(name: str, variant: str, small: bool, device: torch.device) -> tuple[Any, str | None]:
    """The model in training, patched but not compiled, with our report."""
    model, (kind, library) = MODELS[name], load(name, variant)
    config = kind.config_class(**(model.settings | (model.small if small else {})))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            made = kind(config).train()
    finally:
        torch.set_default_dtype(before)
    if VARIANTS[variant].patch == "ours":
        return made, str(library.apply(made))
    if VARIANTS[variant].patch:
        getattr(library, f"apply_liger_kernel_to_{config.model_type}")(model=made)
    return made, None


def compiled(model: nn.Module, variant: str) -> nn.Module:
    """The model to call; of `layers`, those that transformers would checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if VARIANTS[variant].compiled == "layers":
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile()
    return torch.compile(model) if VARIANTS[variant].compiled == "model" else model


def inputs(name: str, model: Any, batch: int, length: int, small: bool) -> dict[str, Tensor]:
    """Random tokens, all of them labels; in a model that sees, an image after the first four."""
    device, config = model.device, model.config
    image = MODELS[name].image
    if image is None:
        vocabulary = config.get_text_config().vocab_size
        tokens = torch.randint(vocabulary, (batch, length), device=device)
        return {"input_ids": tokens, "labels": tokens}
    time, height, width = grid = image[small]
    vision = config.vision_config
    count = time * height * width
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    # tokens with a meaning are the last ones
    tokens = torch.randint(config.vision_start_token_id, (batch, length), device=device)
    kinds = torch.zeros_like(tokens)
    kinds[:, 4 : 4 + count // vision.spatial_merge_size**2] = 1
    tokens[kinds == 1] = config.image_token_id
    return {
        "input_ids": tokens,
        "labels": tokens.masked_fill(kinds == 1, -100),
        "mm_token_type_ids": kinds,
        "pixel_values": torch.randn(batch * count, patch, device=device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([grid] * batch, device=device),
    }
