"""Write a random model of the shape of Llama 3.2 1B, 2.5 GB, with another model's tokenizer.

python -m benchmarks.random_llama TOKENIZER_MODEL FOLDER [float16|bfloat16]
"""

import json
import shutil
import sys
from pathlib import Path

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx

from macai.catalog import locate_model

HIDDEN, INNER, KV, VOCABULARY, LAYERS = 2048, 8192, 512, 128256, 16
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def main() -> None:
    """Write config, tokenizer and a file of weights a layer."""
    source, folder, *asked = sys.argv[1:]
    write(source, Path(folder), getattr(mx, asked[0]) if asked else mx.float16)


def write(source: str, folder: Path, dtype: mx.Dtype) -> None:
    """Write it, with the tokenizer of the model `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in locate_model(source, progress=lambda *_: None).glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    mx.random.seed(0)
    ones = mx.ones((HIDDEN,), dtype)
    rest = {"model.embed_tokens.weight": _random(VOCABULARY, HIDDEN, dtype=dtype)}
    _save(folder, 0, rest | {"model.norm.weight": ones})
    for layer in range(LAYERS):
        arrays = {f"{n}.weight": _random(*shape, dtype=dtype) for n, shape in SHAPES.items()}
        arrays |= {f"{n}_layernorm.weight": ones for n in ("input", "post_attention")}
        _save(folder, layer + 1, {f"model.layers.{layer}.{n}": a for n, a in arrays.items()})


def _random(*shape: int, dtype: mx.Dtype) -> mx.array:
    return mx.random.uniform(-0.03, 0.03, shape, dtype)


def _save(folder: Path, number: int, arrays: dict[str, mx.array]) -> None:
    mx.save_safetensors(f"{folder}/model-{number:02}.safetensors", arrays)


if __name__ == "__main__":
    main()
