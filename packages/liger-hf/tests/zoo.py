"""A tiny random model of every decoder type that the installed transformers registers."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto

# kernels that models would call where they are installed: they round more, and tune for minutes
sys.modules.update(dict.fromkeys(("causal_conv1d", "fla", "mamba_ssm")))

# tokens of a batch stay below: beyond are those that stand for images
VOCAB, TOKENS = 160, 90
MAPPINGS = {
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-text-to-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}

# value -> settings that have it, in whatever configuration they occur
SMALL: dict[int, str] = {
    0: "pad_token_id",
    1: "bos_token_id n_shared_experts num_shared_experts topk_group first_k_dense_replace "
       "num_dense_layers moe_layer_start_index H_cycles L_cycles",
    2: "eos_token_id num_key_value_heads swa_num_key_value_heads num_experts_per_tok "
       "num_experts_per_token moe_topk moe_k num_hidden_layers n_layer n_layers num_layers "
       "encoder_layers decoder_layers depth layers num_encoder_layers num_decoder_layers n_group "
       "num_expert_group linear_num_key_heads mamba_n_groups index_n_heads num_layers_per_stack",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads attention_heads "
       "decoder_attention_heads linear_num_value_heads linear_num_heads time_step_rank "
       "sliding_window index_topk swa_num_attention_heads rotary_dim laurel_rank dim_head",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim swa_head_dim n_routed_experts "
       "num_experts num_local_experts moe_num_experts mamba_n_heads mamba_d_head mamba_d_state "
       "mamba_chunk_size state_size chunk_size ssm_state_size mamba_num_heads mamba_head_dim "
       "linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim patch_size",
    16: "q_lora_rank kv_lora_rank qk_head_dim num_position_embeddings hidden_size_per_layer_input",
    24: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "moe_shared_expert_intermediate_size expert_ffn_hidden_size",
    32: "hidden_size d_model n_embd embed_dim dim word_embed_proj_dim image_size out_hidden_size "
        "projection_dim lru_width emb_dim embedding_size hidden_size_global",
    48: "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff intermediate_size_mlp "
        "dense_intermediate_size ffn_hidden_size dim_ff",
    128: "max_position_embeddings n_positions n_ctx",
    VOCAB: "vocab_size vocab_size_per_layer_input n_words decoder_vocab_size",
}  # fmt: skip
SIZES = {name: size for size, names in SMALL.items() for name in names.split()}
# None in these means that there is no such thing
OPTIONAL = ("q_lora_rank", "sliding_window", "pad_token_id", "index_topk", "moe_intermediate_size")
LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
HYBRID = ["linear_attention", "full_attention"]

# model type -> settings with which its configuration is made
GIVEN: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": VOCAB - 1}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "emu3": {"vocabulary_map": {"<image>": VOCAB - 1, "<|extra_200|>": VOCAB - 2}},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
}
# model type, be it of a part -> settings after it is shrunk
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"use_cache": False, "encoder_hash_byte_group_vocab": 64},
    "blt_global_transformer": {"encoder_cross_output_size": 64},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}
    },
    "big_bird": {"attention_type": "original_full"},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {"moe_intermediate_size": 24, "num_experts": 4, "top_k_experts": 2},
    # the width of the tables is a quarter of it
    "dots3_note_text": {"head_dim": 32},
    "ernie4_5_vl_moe_text": {"rope_parameters": {"mrope_section": [1, 1, 2]}},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_rms_norm": True},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.95, 0.0]},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "granite4_vision": {"deepstack_layer_map": [], "downsample_rate": "1/2"},
    "granitemoehybrid": {"layer_types": HYBRID},
    "hrm_text": {"use_cache": False},
    "hunyuan_v1_moe": {"moe_topk": [2, 2], "num_experts": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "mistral4": {"head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64,
    },
    "reformer": {"hash_seed": 0, "axial_pos_embds": False, "is_decoder": True},
    "step3p5": {"sliding_window": 4},
    "xlstm": {"embedding_dim": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
              "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {"hybrid_layer_ids": [1], "mamba_headdim": 8, "n_mamba_heads": 8,
               "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
}  # fmt: skip


def types() -> Iterator[tuple[str, str]]:
    """Every kind of decoder with every model type of it."""
    for kind, mapping in MAPPINGS.items():
        yield from ((kind, model_type) for model_type in sorted(mapping))


def tiny(kind: str, model_type: str) -> Any:
    """A model in training mode on the CPU in fp32; the same weights at every call.

    Raises whatever transformers raises where a model cannot be made here.
    """
    name = MAPPINGS[kind][model_type]
    cls = getattr(transformers, name[0] if isinstance(name, (tuple, list)) else name)
    config = configuration_auto.CONFIG_MAPPING[model_type](**GIVEN.get(model_type, {}))
    if kind == "causal-lm" and not isinstance(config, cls.config_class):
        config = cls.config_class()
    if kind == "causal-lm" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    _shrink(config)
    torch.manual_seed(0)
    return cls(config).float().train()


def decoder(model: Any) -> nn.Module:
    """The text decoder inside, where a model tells it."""
    try:
        return model.get_decoder() or model
    except (AttributeError, NotImplementedError):
        return model


def _shrink(config: PreTrainedConfig) -> None:
    own = vars(config)
    for name, value in list(own.items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif name in SIZES and (type(value) is int or (value is None and name not in OPTIONAL)):
            counts = name.startswith(("num_", "n_", "first_"))
            setattr(config, name, min(value, SIZES[name]) if counts and value else SIZES[name])
    _one_layer_of_each_kind(config)
    if "kv_lora_rank" in own and "num_attention_heads" in own:
        config.num_key_value_heads = own["num_attention_heads"]
    _sections(config)
    for name, value in SETTINGS.get(config.model_type, {}).items():
        both = isinstance(value, dict) and isinstance(own.get(name), dict)
        setattr(config, name, own[name] | value if both else value)


def _one_layer_of_each_kind(config: PreTrainedConfig) -> None:
    own = vars(config)
    lists = {name: own[name] for name in LAYERS if own.get(name)}
    if not lists:
        return
    count = max(map(len, lists.values()))
    lists = {name: kinds for name, kinds in lists.items() if len(kinds) == count}
    first: dict[object, int] = {}
    for layer, kinds in enumerate(zip(*lists.values(), strict=True)):
        first.setdefault(kinds, layer)
    layers = sorted(first.values()) if len(first) > 1 else [0, 0]
    for name, kinds in lists.items():
        setattr(config, name, [kinds[layer] for layer in layers])
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if name in own:
            setattr(config, name, len(layers))


def _sections(config: PreTrainedConfig) -> None:
    """Three axes share the pairs of a head, where a model has axes."""
    own = vars(config)
    rope, heads = own.get("rope_parameters"), own.get("num_attention_heads")
    if not isinstance(rope, dict) or "rope_type" not in rope or not heads:
        return
    width = own.get("head_dim") or own["hidden_size"] // heads
    pairs = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
    rope["mrope_section"] = [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4]
