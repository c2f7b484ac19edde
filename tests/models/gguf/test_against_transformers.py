"""Tiny models of transformers, written as GGUF and converted back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

pytestmark = pytest.mark.oracle

Tiny = Callable[..., Any]
Convert = Callable[..., Path]

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-5,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 100.0,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Put q's and k's rows in llama.cpp's order."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def original(name: str, options: dict[str, Any]) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config_class = getattr(transformers, f"{name.capitalize()}Config")
    config = config_class(**SIZES | options, attn_implementation="eager")
    model = getattr(transformers, f"{name.capitalize()}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start as ones and zeros
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def as_gguf(tiny_gguf: Tiny, name: str, model: Any) -> Any:
    config = model.config
    file = tiny_gguf(name, head_dim=config.head_dim if name != "qwen2" else 16)
    rope = config.rope_parameters
    file.metadata[f"{name}.rope.freq_base"] = float(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        file.metadata[f"{name}.rope.scaling.type"] = rope["rope_type"]
        file.metadata[f"{name}.rope.scaling.factor"] = rope["factor"]
    if rope["rope_type"] == "yarn":
        length = rope["original_max_position_embeddings"]
        file.metadata[f"{name}.rope.scaling.original_context_length"] = length
    file.tensors = {}
    for key, value in model.state_dict().items():
        values = value.numpy()
        if key.startswith("model.layers."):
            _, _, layer, path = key.split(".", 3)
            path, _, kind = path.rpartition(".")
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(path)
            if name == "llama" and heads:
                values = interleaved(values, heads)
            file.tensors[f"blk.{layer}.{NAMES[path]}.{kind}"] = values
        else:
            outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
            path = key.removesuffix(".weight")
            if path != "lm_head" or not config.tie_word_embeddings:
                file.tensors[outer.get(path, "output") + ".weight"] = values
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        scaled = model.model.rotary_emb.inv_freq.numpy()
        file.tensors["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    return file


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3, "head_dim": 64}),
        ("llama", {"rope_parameters": LINEAR, "head_dim": 32}),
        ("llama", {"rope_parameters": YARN}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"tie_word_embeddings": False, "rope_parameters": YARN}),
        ("qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    ],
)
def test_a_model_of_transformers_comes_back(
    tiny_gguf: Tiny, convert: Convert, name: str, options: dict[str, Any]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = original(name, options)
    folder = convert(as_gguf(tiny_gguf, name, model))
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, 100))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits.numpy()
        again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        assert model.state_dict().keys() == again.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key
        logits = again(torch.from_numpy(tokens)).logits.numpy()
    scale = np.abs(wanted).max()
    assert np.abs(logits - wanted).max() / scale < 1e-5
    found = np.array(load_model(folder)[0](mx.array(tokens)))
    assert np.abs(found - wanted).max() / scale < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_opens_half_precision_as_such(
    tiny_gguf: Tiny, convert: Convert, dtype: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(convert(tiny_gguf(), dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
