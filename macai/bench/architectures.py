"""Models of mlx-lm, tiny and random, and how near the package of one is to it.

Each of LISTED runs mlx-lm's own code, with what sets its architecture apart: windows shorter than
the prompt, layers without RoPE, heads that are not the hidden size divided by their number.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

CONTEXT, ROWS, STEPS = 64, 8, 3
SIZES: Mapping[str, Any] = {
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
LISTED: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 24},  # as Mistral Nemo has: 4 heads of 24 beside a hidden size of 64
    "qwen2": {},
    "qwen3": {},
    "smollm3": {"no_rope_layer_interval": 2},
    "gemma3_text": {"sliding_window": 5, "sliding_window_pattern": 2},
    "phi3": {"rope_scaling": None},
    "starcoder2": {"norm_epsilon": 1e-5},
}
"""The architectures macai promises to export, each with what its config has beyond SIZES."""


class Agreement(NamedTuple):
    """The least cosine of logits, and their largest error as a share of the largest logit."""

    cosine: float
    error: float


def config_of(model_type: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a tiny model."""
    return {**SIZES, "model_type": model_type, **extra}


def build(config: dict[str, Any]) -> nn.Module:
    """Return a model with random float32 weights, always the same, as mlx-lm makes it."""
    from mlx_lm.utils import _get_classes

    made, arguments = _get_classes(config)
    mx.random.seed(0)
    model: nn.Module = made(arguments.from_dict(config))
    mx.eval(model.parameters())
    return model


def tokens_of() -> np.ndarray:
    """Return a text of random tokens, int32 [ROWS + STEPS]."""
    return np.random.default_rng(0).integers(1, 60, ROWS + STEPS).astype(np.int32)


def agreement(model: nn.Module, path: Path) -> Agreement:
    """Export a model in fp32 to `path`, run the package, and compare it with mlx-lm."""
    from macai.coreml import export_functions
    from macai.coreml.llm import llm_functions
    from macai.mil import open_package

    functions = llm_functions(model, context=CONTEXT, prefill=(ROWS,), precision="fp32")
    export_functions(functions, path, force=True)
    return package_agreement(model, open_package(path))


def package_agreement(model: nn.Module, package: Any) -> Agreement:
    """Run an opened package, or several that are a chain, and compare it with mlx-lm.

    A prompt is taken by the prefill function, then tokens one at a time, with the package's state,
    next to mlx-lm's own cache. Keys and values are float16 in any state of Core ML: MLX's caches
    are rounded to that as well, so that the rest can be compared closely.
    """
    state, cache = package.make_state("prefill"), rounded_cache(model)
    tokens = tokens_of()
    steps = [("prefill", 0, tokens[:ROWS])]
    steps += [("decode", place, tokens[place : place + 1]) for place in range(ROWS, len(tokens))]
    got, wanted = [], []
    for name, place, ids in steps:
        inputs = {"inputIds": ids[None], "position": np.array([place], np.int32)}
        if name == "prefill":
            inputs["last"] = np.array([ROWS - 1], np.int32)
        result = package.functions[name].run(inputs, state=state)
        got.append(result.outputs["logits"].reshape(-1))
        wanted.append(np.array(model(mx.array(ids)[None], cache=cache)[0, -1]))
    return compared(got, wanted)


def compared(got: list[np.ndarray], wanted: list[np.ndarray]) -> Agreement:
    """Compare logits, float [V] each, position by position; the worst position counts."""
    cosines = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        for a, b in zip(got, wanted, strict=True)
    ]
    errors = [
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, wanted, strict=True)
    ]
    return Agreement(float(np.min(cosines)), float(np.max(errors)))  # NaN is kept


def rounded_cache(model: nn.Module) -> list[Any]:
    """Return mlx-lm's own cache, that keeps and attends to float16, as a state of Core ML does."""
    from mlx_lm.models.cache import make_prompt_cache

    def rounds(write: Any) -> Any:
        return lambda *arrays: write(*(a.astype(mx.float16).astype(mx.float32) for a in arrays))

    cache: list[Any] = make_prompt_cache(model)
    for layer in cache:
        layer.update_and_fetch = rounds(layer.update_and_fetch)
    return cache
