"""A tiny configuration of every causal language model of the installed transformers, where one can be had."""

from __future__ import annotations

import transformers
from packaging.version import Version

SINCE = {"internlm3": "5.23", "llama4_text": "5.23"}
"""The first transformers with a family; for llama4, the first whose masks count chunks from the start of a segment."""

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 256,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "num_layers": 2,
    "num_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}

ZAMBA_LAYERS = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
SPECIAL: dict[str, dict[str, object]] = {
    "bamba": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "attn_layer_indices": [1],
    },
    "codegen": {"num_attention_heads": 4, "rotary_dim": 8},
    "codestral_mamba": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 64,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 48,
    },
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"no_rope_layers": [1, 0]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "mimo_v2_flash": {"head_dim": 24, "v_head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 48,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "layer_types": None},
    "zamba": {"layers_block_type": ZAMBA_LAYERS, "num_hidden_layers": 4, "layer_types": None},
    "zamba2": {
        "layers_block_type": ZAMBA_LAYERS,
        "num_hidden_layers": 4,
        "layer_types": None,
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
    },
    "youtu": {"pad_token_id": 0},  # transformers zeroes the row of padding whenever it loads weights
    "zaya": {"num_experts_per_tok": 1},
    "qwen4_exp_text": {
        "num_experts_per_tok": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
        "hc_count": 2,
    },
}
"""What a family needs besides the small sizes, or instead of them; None leaves an argument out."""

VARIANTS = {"granitemoehybrid, attention only": {"layer_types": ["attention", "attention"]}}
"""Separate rows for what a family's tiny configuration hides."""


def available(cases: dict[str, tuple]) -> dict[str, tuple]:
    """Leaves out the cases, each a family and more, that the installed transformers is too old for."""
    installed = Version(transformers.__version__)
    return {name: case for name, case in cases.items() if installed >= Version(SINCE.get(case[0], "0"))}


def tiny_config(family: str, **overrides: object):
    """The family's default configuration with every size it knows made small; None where the text model is nested."""
    model_type = family.partition(",")[0]
    config = transformers.AutoConfig.for_model(model_type)
    if config.get_text_config() is not config:
        return None
    known = {name: value for name, value in TINY.items() if _takes(config, name)}
    if "head_dim" in known and _takes(config, "qk_rope_head_dim"):
        known["head_dim"] = TINY["qk_rope_head_dim"]
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if len(kinds) > 1:  # a layer of every kind, or the tiny model would not show what the family does
        known |= {"num_hidden_layers": len(kinds), "layer_types": kinds}
    special = SPECIAL.get(model_type, {}) | VARIANTS.get(family, {}) | overrides
    while True:
        try:
            given = {name: value for name, value in {**known, **special}.items() if value is not None}
            return transformers.AutoConfig.for_model(model_type, **given)
        except Exception as error:
            refused = [name for name in known if f"'{name}'" in str(error)]
            if not refused:
                raise
            del known[refused[0]]


def _takes(config, name: str) -> bool:
    try:
        return getattr(config, name, None) is not None
    except Exception:  # an attribute that differs between the layers
        return False
