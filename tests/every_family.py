"""A tiny random model of every causal family in transformers' mapping, each of the family's own config.

Sizes have a dozen names from family to family: each config gets those that it knows. What a family needs beside them,
or cannot bear, is in `OWN`.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

EVERY_FAMILY = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LAYERS = 4
SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size_global"], 32),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embedding_size", "lru_width", "decoder_hidden_size"], 32),
    **dict.fromkeys(["encoder_hidden_size", "cross_attention_hidden_size"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "d_inner", "n_inner", "decoder_ffn_dim"], 64),
    **dict.fromkeys(["encoder_ffn_dim", "mamba_d_ssm"], 64),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], LAYERS),
    **dict.fromkeys(["num_decoder_layers"], LAYERS),
    **dict.fromkeys(["encoder_layers", "num_encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 2),
    **dict.fromkeys(["encoder_attention_heads", "num_key_value_heads", "num_kv_heads", "index_n_heads"], 2),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 2),
    **dict.fromkeys(["head_dim", "v_head_dim", "index_head_dim", "linear_key_head_dim"], 16),
    **dict.fromkeys(["linear_value_head_dim", "mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "o_lora_rank"], 16),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim", "index_topk", "laurel_rank"], 8),
    **dict.fromkeys(["hidden_size_per_layer_input", "mamba_d_state", "ssm_state_size", "state_size"], 8),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads"], 4),
    **dict.fromkeys(["mamba_n_groups", "n_groups", "n_group", "topk_group", "n_shared_experts"], 1),
    **dict.fromkeys(["first_k_dense_replace"], 1),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"], 16),
    **dict.fromkeys(["moe_shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], 64),
    **dict.fromkeys(["sliding_window", "attention_window_size"], 8),
    "image_size": 32,
    "patch_size": 16,
    "mamba_expand": 2,
    "num_kv_shared_layers": 2,
}


def tiny_config(family: str, **common: Any) -> PreTrainedConfig:
    """Raises whatever the family's config class raises if these sizes do not suit it."""
    config_class = CONFIG_MAPPING[family]
    default = config_class()
    sizes = {**SIZES, **common}
    parts = {key: value for key, value in vars(default).items() if isinstance(value, PreTrainedConfig)}
    known = {key: _known(part, sizes) for key, part in parts.items()}
    if not parts or default.get_text_config() is default:
        known |= _known(default, sizes)
    return config_class(**known)


def _known(config: PreTrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in sizes.items() if _takes(config, key)}
    if "qk_rope_head_dim" in known:  # the same thing by another name
        known.pop("head_dim", None)
    own = OWN.get(config.model_type, {})
    alias = {known_as for known_as, name in config.attribute_map.items() if name in own}
    return {key: value for key, value in known.items() if key not in alias} | copy.deepcopy(own)


def _takes(config: PreTrainedConfig, key: str) -> bool:
    if isinstance(getattr(type(config), key, None), property):  # worked out from others
        return False
    try:
        return hasattr(config, key)
    except NotImplementedError:
        return False
    except (AttributeError, AmbiguousGlobalPerLayerAttributeError):  # one that differs from layer to layer
        return True


HYBRID = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
SHARED = ["sliding_attention", "full_attention"] * 2  # the upper two share keys with the lower
INDEXER = {"index_n_heads": 8}  # with fewer, many scores of a tiny model are 0, and which are the best is chance
GLOBAL = {"layer_types": SHARED, "num_kv_shared_layers": 2, "global_head_dim": 16}
ROPE = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
MUTUAL = ["linear_attention", "hybrid"] * 2  # the hybrids have a block in common
OWN: dict[str, dict[str, Any]] = {
    "axk2": INDEXER,
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"layer_types": SHARED, "rope_parameters": ROPE},
    "dbrx": {
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16},
        "attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0},
    },
    "deepseek_v32": INDEXER,
    "dots3_note_text": {
        **INDEXER,
        **{f"swa_{name}_heads": 2 for name in ("num_attention", "num_key_value")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "head_dim", "v_head_dim")},
        "swa_qk_nope_head_dim": 8,
    },
    "hy_v4": INDEXER,
    "qwen4_exp_text": {
        "indexer_n_heads": 8,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
    },
    "zamba": {"layers_block_type": MUTUAL},
    "bailing_hybrid": {"layer_types": HYBRID},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4, "rotary_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "cpmant": {"dim_head": 16, "dim_ff": 64},
    "gemma3n_text": {"layer_types": SHARED, "num_kv_shared_layers": 2},
    "gemma4_text": GLOBAL,
    "gemma4_unified_text": GLOBAL,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "granite": {"logits_scaling": 8.0},
    "granitemoehybrid": {"layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"linear_head_dim": 16, "linear_num_heads": 2, "layer_types": HYBRID},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "longcat_flash": {"ffn_hidden_size": 64, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "head_dim": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mimo_v2_flash": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "minicpm3": {"dim_model_base": 16},
    "prophetnet": {"num_decoder_layers": LAYERS},
    "qwen3_5_text": {"layer_types": HYBRID},
    "reformer": {"axial_pos_embds": False, "is_decoder": True},
    "roc_bert": {"shape_vocab_size": 48, "pronunciation_vocab_size": 48},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": MUTUAL},
    "zaya": {"num_experts_per_tok": 1},
}

# Families of which there is no tiny model here, and why.
NOT_TRIED: dict[str, str] = {
    **dict.fromkeys(["gemma4_assistant", "gemma4_unified_assistant"], "it drafts tokens for another model"),
    **dict.fromkeys(["musicgen", "musicgen_melody"], "its tokens are sound"),
    "dots3_note": "its towers have no small form; its text model is dots3_note_text",
    "gemma3n": "its vision tower needs the package timm; its text model is gemma3n_text",
}
