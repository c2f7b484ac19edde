"""Models of mlx-lm, tiny and random, exported unmodified and run: what they say is what MLX says.

A prompt is taken by the prefill function, then tokens one at a time, with the package's state, next
to mlx-lm's own cache. Packages are fp32, but keys and values are float16 in any Core ML state:
MLX's caches are rounded to that as well, so that the rest can be compared closely.
"""

import importlib

import mlx.core as mx
import numpy as np
import pytest

from macai.coreml import export_functions
from macai.coreml.llm import llm_functions
from macai.mil import open_package

CONTEXT, ROWS, STEPS = 64, 8, 3
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 80,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
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
SLIDING = ["sliding_attention", "full_attention"]
# Name: the module of mlx_lm.models, and what its config has beyond SIZES.
FAST = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 positions": ("llama", {"rope_scaling": LLAMA3}),
    "llama, linear positions": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama, traditional": ("llama", {"rope_traditional": True}),
    "llama, sliding": ("llama", {"layer_types": SLIDING, "sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
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
    "gemma3_text": ("gemma3_text", {"sliding_window": 5, "sliding_window_pattern": 2}),
    "phi3": ("phi3", {"rope_scaling": None}),
    "phi3, longrope": (
        "phi3",
        {
            "rope_scaling": LONGROPE,
            "original_max_position_embeddings": 32,
            "max_position_embeddings": 128,
        },
    ),
    "starcoder2": ("starcoder2", {"norm_epsilon": 1e-5}),
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MORE = {
    "apertus": {"mlp_bias": False, "attention_bias": False, "post_norm": False, "qk_norm": True},
    "cohere": {},
    "cohere2": {"sliding_window": 5, "sliding_window_pattern": 2},
    "deepseek": {},
    "ernie4_5": {"use_bias": False},
    "exaone": {"num_layers": 2, "layer_norm_epsilon": 1e-5},
    "exaone4": {"rope_scaling": LLAMA3, "sliding_window": 5, "sliding_window_pattern": "LG"},
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
    "mimo": {},
    "minicpm": {"dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 3},
    "mixtral": {},
    "nanochat": {},
    "nemotron": {"hidden_act": "relu2", "norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    "olmo2": {},
    "olmo3": {"sliding_window": 5, "layer_types": SLIDING},
    "olmoe": EXPERTS,
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


def built(module, extra):
    """A random model, its weights larger than usual, so that its layers matter."""
    code = importlib.import_module(f"mlx_lm.models.{module}")
    config = SIZES | {"model_type": module} | extra
    mx.random.seed(0)
    model = code.Model(code.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return model


def rounded_cache(model):
    """mlx-lm's own cache, that keeps float16 as a state of Core ML does, and attends to that."""
    from mlx_lm.models.cache import make_prompt_cache

    def rounds(write):
        return lambda *arrays: write(*(a.astype(mx.float16).astype(mx.float32) for a in arrays))

    cache = make_prompt_cache(model)
    for layer in cache:
        layer.update_and_fetch = rounds(layer.update_and_fetch)
    return cache


def compare(model, path):
    """Return the least cosine and the largest error over the largest logit."""
    export_functions(
        llm_functions(model, context=CONTEXT, prefill=(ROWS,), precision="fp32"), path, force=True
    )
    package = open_package(path)
    state = package.make_state("prefill")
    cache = rounded_cache(model)
    tokens = np.random.default_rng(0).integers(1, 60, ROWS + STEPS)
    cosines, errors = [], []
    for name, place, ids in [
        ("prefill", 0, tokens[:ROWS]),
        *(("decode", ROWS + n, tokens[ROWS + n : ROWS + n + 1]) for n in range(STEPS)),
    ]:
        inputs = {"inputIds": ids[None].astype(np.int32), "position": np.array([place], np.int32)}
        if name == "prefill":
            inputs["last"] = np.array([ROWS - 1], np.int32)
        got = package.functions[name].run(inputs, state=state).outputs["logits"].reshape(-1)
        wanted = np.array(model(mx.array(ids)[None], cache=cache)[0, -1])
        scale = np.linalg.norm(got) * np.linalg.norm(wanted)
        cosines.append(float(got @ wanted / scale))
        errors.append(float(np.abs(got - wanted).max() / np.abs(wanted).max()))
    return min(cosines), max(errors)


@pytest.mark.parametrize("name", FAST)
def test_what_a_package_says_is_what_mlx_says(name, tmp_path):
    cosine, error = compare(built(*FAST[name]), tmp_path / "p.mlpackage")
    assert cosine >= 0.99999
    assert error <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_what_more_packages_say_is_what_mlx_says(name, tmp_path):
    cosine, error = compare(built(name, MORE[name]), tmp_path / "p.mlpackage")
    assert cosine >= 0.99999
    assert error <= 1e-4
