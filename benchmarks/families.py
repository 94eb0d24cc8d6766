"""Tiny random models of the families that transformers knows, made from their configs alone."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

# Sizes by the names that configs have for them; a family takes those that it knows.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 97),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff", "decoder_mlp_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_hidden_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size", "block_ff_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "mamba_d_head", "mamba_head_dim", "v_head_dim", "state_size"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "mamba_d_state", "ssm_state_size"), 4),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size"), 4),
    # Of attention to a few tokens: fewer than a row has.
    **dict.fromkeys(("index_topk", "index_topk_blocks", "index_block_size", "index_n_heads"), 4),
    "index_head_dim": 8,
    # Large enough that logits differ by whole nats, so that an error in them shows.
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    # Families that are else encoders.
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a family needs beside its sizes, or to have layers of each of its kinds.
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_hidden_layers": 4},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "qwen3_5": {"num_hidden_layers": 4},
    "qwen3_5_moe": {"num_hidden_layers": 4},
    "qwen3_5_moe_text": {"num_hidden_layers": 4},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_next": {"num_hidden_layers": 4},
    "qwen4_exp_text": {"num_hidden_layers": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
    "cohere2": {"num_hidden_layers": 4},
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma3": {"num_hidden_layers": 6},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 1},
    "llama4_text": {"num_hidden_layers": 4},
}
# Families whose key and query have a part of their own for positions name its width where others name a head's.
SPLIT_HEAD = "qk_rope_head_dim"


def small_config(family: str, **settings: Any) -> PreTrainedConfig:
    """The config of a family in small sizes; of a model with parts, each part's."""
    kind = CONFIG_MAPPING[family]
    whole = kind()
    own = {**OWN.get(family, {}), **settings}
    parts = {name: part for name, part in vars(whole).items() if isinstance(part, PreTrainedConfig)}
    text = whole.get_text_config()
    small = {name: {**_sizes(part), **(own if part is text else {})} for name, part in parts.items()}
    return kind(**({**_sizes(whole), **own} if text is whole else {}), **small)


def small_model(config: PreTrainedConfig, auto_class: type[Any], seed: int = 0) -> PreTrainedModel:
    """A random fp32 model of a config, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class.from_config(config, dtype=torch.float32).eval()


def _sizes(config: PreTrainedConfig) -> dict[str, Any]:
    known = {*config.to_dict(), *type(config).attribute_map}
    sizes = {name: size for name, size in SMALL.items() if name in known}
    if SPLIT_HEAD in sizes:
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = SMALL["num_attention_heads"]
    return sizes
