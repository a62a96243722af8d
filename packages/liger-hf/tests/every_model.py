"""A tiny random model of any type that transformers knows: its default configuration, shrunk."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT,
)

__all__ = ["CAUSAL", "IMAGE_TEXT", "build_type", "inputs_of"]

# value -> settings that get it, where a configuration has them
SIZES: dict[int, str] = {
    0: "pad_token_id",
    1: "bos_token_id n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace "
    "moe_num_shared_experts",
    2: "eos_token_id num_hidden_layers n_layer num_layers depth n_layers decoder_layers "
    "encoder_layers num_decoder_layers num_key_value_heads num_kv_heads n_head_kv "
    "attention_num_key_value_heads swa_num_key_value_heads num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok moe_topk moe_k num_experts_per_token moe_top_k "
    "top_k_experts num_selected_experts",
    4: "num_attention_heads n_head n_heads heads num_heads decoder_attention_heads "
    "encoder_attention_heads linear_num_value_heads index_n_heads swa_num_attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts",
    8: "head_dim attention_head_dim kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim "
    "linear_key_head_dim linear_value_head_dim global_head_dim swa_head_dim swa_v_head_dim d_kv "
    "index_head_dim rotary_dim state_size ssm_state_size mamba_d_state",
    16: "qk_head_dim kv_lora_rank q_lora_rank hidden_size_per_layer_input laurel_rank o_lora_rank "
    "sliding_window attention_window",
    32: "hidden_size d_model n_embd dim embed_dim embedding_size d_embed vision_hidden_size "
    "mm_hidden_size out_hidden_size projection_dim model_dim word_embed_proj_dim "
    "projector_hidden_size",
    48: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size moe_intermediate_size "
    "shared_expert_intermediate_size intermediate_size_mlp mlp_hidden_size ffn_intermediate_size "
    "moe_shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
    "decoder_ffn_dim encoder_ffn_dim block_ff_dim dense_intermediate_size lm_intermediate_size",
    96: "vocab_size text_vocab_size n_vocab vocab_size_per_layer_input vocabulary_size",
    128: "max_position_embeddings n_positions n_ctx max_sequence_length context_length seq_length "
    "model_max_length max_seq_len",
}
SIZE = {name: value for value, names in SIZES.items() for name in names.split()}

MIXED = ["linear_attention", "full_attention"]
# what else a type needs
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 1, "topk_group": 1},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "num_hidden_layers": 2, "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.5, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {
        "mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": MIXED,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": [MIXED[0], "hybrid", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def settings_of(config: Any) -> dict[str, Any]:
    """Keywords that make a small configuration of the kind of `config`."""
    own = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    small = {
        name: SIZE[name]
        for name, value in own.items()
        if name in SIZE
        and (type(value) is int or (value is None and name in ("head_dim", "num_key_value_heads")))
    }
    if "kv_lora_rank" in own and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    for name in ("layer_types", "layers_block_type"):
        if isinstance(own.get(name), (list, tuple)) and "num_hidden_layers" in small:
            # one layer of each kind, two at least
            kinds = list(dict.fromkeys(own[name]))
            small[name] = kinds * 2 if len(kinds) == 1 else kinds
            small["num_hidden_layers"] = len(small[name])
    if isinstance(own.get("mlp_layer_types"), (list, tuple)):
        kinds = list(dict.fromkeys(own["mlp_layer_types"]))
        number = small["num_hidden_layers"]
        small["mlp_layer_types"] = (kinds + kinds[-1:] * number)[:number]
    rope = own.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        half = int(8 * rope.get("partial_rotary_factor", 1.0)) // 2
        small["rope_parameters"] = rope | {
            "mrope_section": [half - 2 * (half // 3), *[half // 3] * 2]
        }
    for name in getattr(config, "sub_configs", None) or {}:
        if own.get(name) is not None:
            small[name] = settings_of(own[name])
    return small


def build_type(model_type: str, names: dict[str, Any] = CAUSAL) -> nn.Module:
    """In training mode, without dropout; the same weights at every call."""
    name = names[model_type]
    model_class = getattr(transformers, name if isinstance(name, str) else name[0])
    kind = CONFIG_MAPPING[model_type]
    if names is CAUSAL and not issubclass(kind, model_class.config_class):
        kind = model_class.config_class
    settings = settings_of(kind()) | OWN.get(model_type, {})
    config = kind(**settings)
    for part in (config, *(getattr(config, n, None) for n in getattr(config, "sub_configs", ()))):
        if hasattr(part, "is_decoder") and names is CAUSAL:
            part.is_decoder = True
        if hasattr(part, "use_cache"):
            part.use_cache = False
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def inputs_of(length: int = 10) -> dict[str, Tensor]:
    """Text alone, in the vocabulary of the tiny models; some labels are ignored."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (2, length), generator=generator)
    return {"input_ids": ids, "labels": ids.where(ids > 12, -100)}
