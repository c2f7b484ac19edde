"""Models of mlx-lm, tiny and random, exported unmodified: what they say is what MLX says."""

import pytest

from macai.bench.architectures import LISTED, agreement, build, config_of

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * n for n in range(8)],
    "long_factor": [1.0 + 0.5 * n for n in range(8)],
}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
SLIDING = ["sliding_attention", "full_attention"]
# Name: the model_type, and what else the config has beyond SIZES.
FAST = {name: (name, extra) for name, extra in LISTED.items()} | {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 positions": ("llama", {"rope_scaling": LLAMA3}),
    "llama, linear positions": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama, traditional": ("llama", {"rope_traditional": True}),
    "llama, sliding": ("llama", {"layer_types": SLIDING, "sliding_window": 5}),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 16.0,
            "sliding_window": 5,
        },
    ),
    "phi3, longrope": (
        "phi3",
        {
            "rope_scaling": LONGROPE,
            "original_max_position_embeddings": 32,
            "max_position_embeddings": 128,
        },
    ),
    "gemma4_text": (
        "gemma4_text",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": SLIDING * 2,
            "sliding_window": 5,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 80,
        },
    ),
    "afm7": (  # counts positions by the length of its keys
        "afm7",
        {
            "hidden_dim": 64,
            "num_layers": 3,
            "num_kv_reuse_layers": 1,
            "num_heads": 4,
            "num_kv_heads": 2,
        },
    ),
    "minicpm3": (
        "minicpm3",
        LATENT
        | {
            "rope_scaling": LONGROPE | {"original_max_position_embeddings": 32},
            "dim_model_base": 32,
            "scale_depth": 1.4,
            "scale_emb": 3,
        },
    ),
}
MINISTRAL = {
    "rope_theta": 10000.0,
    "type": "default",
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 32,
}
WRAPPED = {
    "gemma3_text": config_of("gemma3_text", LISTED["gemma3_text"]),
    "gemma3n_text": config_of(
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 80,
            "sliding_window": 5,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": SLIDING * 2,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
        },
    ),
    "ministral3": config_of("ministral3", {"rope_parameters": MINISTRAL}),
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MORE = {
    "apertus": {"mlp_bias": False, "attention_bias": False, "post_norm": False, "qk_norm": True},
    "cohere": {},
    "cohere2": {"sliding_window": 5, "sliding_window_pattern": 2},
    "deepseek": {},
    "deepseek_v2": LATENT
    | {
        "rope_scaling": {"factor": 2.0, "mscale_all_dim": 1.0},
        "n_routed_experts": None,
        "n_shared_experts": None,
    },
    "ernie4_5": {"use_bias": False},
    "exaone": {"num_layers": 2, "layer_norm_epsilon": 1e-5},
    "exaone4": {"rope_scaling": LLAMA3, "sliding_window": 5, "sliding_window_pattern": "LG"},
    "gemma3": {"text_config": WRAPPED["gemma3_text"]},
    "gemma3n": {"text_config": WRAPPED["gemma3n_text"]},
    "glm": {},
    "glm4": {"attention_bias": True, "partial_rotary_factor": 0.5},
    "gpt2": {
        "n_ctx": 64,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 80,
        "layer_norm_epsilon": 1e-5,
    },
    "gpt_neox": {"layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gpt_oss": {"sliding_window": 5},
    "granite": {
        "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "helium": {"attention_bias": False, "mlp_bias": False},
    "hunyuan_v1_dense": {},
    "internlm2": {},
    "internlm3": {},
    "iquestloopcoder": {},
    "lille-130m": {"block_size": 64, "layer_norm_eps": 1e-5, "n_kv_heads": 2}
    | {"n_embd": 64, "n_head": 4, "n_layer": 2},
    "llama4_text": {"no_rope_layers": [1, 0], "use_qk_norm": True, "intermediate_size_mlp": 96},
    "mimo": {},
    "minicpm": {"dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 3},
    "ministral3": {"rope_parameters": MINISTRAL},
    "mistral3": {"text_config": WRAPPED["ministral3"]},
    "mixtral": {},
    "nanochat": {},
    "nemotron": {"hidden_act": "relu2", "norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    "olmo2": {},
    "olmo3": {"sliding_window": 5, "layer_types": SLIDING},
    "olmoe": EXPERTS,
    "openelm": {
        "num_transformer_layers": 2,
        "model_dim": 64,
        "ffn_dim_divisor": 32,
        "num_query_heads": [4, 6],
        "num_kv_heads": [2, 3],
        "ffn_multipliers": [1.0, 2.0],
    },
    "phi": {},
    "phimoe": {},
    "qwen": {"kv_channels": 16, "num_key_value_heads": 4},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": EXPERTS
    | {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    "seed_oss": {},
    "stablelm": {
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "norm_eps": 1e-5,
        "qk_layernorm": True,
        "use_parallel_residual": False,
        "use_qkv_bias": True,
    },
}


def many(names):
    """Parameters for a profile other than the default: the rarer ones are `long`."""
    return [pytest.param(n, marks=pytest.mark.long) if n in MORE else n for n in names]


@pytest.mark.parametrize("name", FAST)
def test_what_a_package_says_is_what_mlx_says(name, tmp_path):
    found = agreement(build(config_of(*FAST[name])), tmp_path / "p.mlpackage")
    assert found.cosine >= 0.99999
    assert found.error <= 5e-4  # a key that rounds to the next float16


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_what_more_packages_say_is_what_mlx_says(name, tmp_path):
    found = agreement(build(config_of(name, MORE[name])), tmp_path / "p.mlpackage")
    assert found.cosine >= 0.99999
    assert found.error <= 5e-4
