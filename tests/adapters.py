"""Adapters that change something, without training: a random B."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.models.adapter import (
    AdapterConfig,
    adapter_weights,
    save_adapter_config,
    save_adapter_weights,
)
from macai.models.dora import DoRALinear
from macai.models.identity import identify
from macai.models.load import LoadedModel
from macai.models.lora import add_lora, lora_layers, target_paths
from macai.models.peft_config import PeftConfig
from macai.models.whole import whole_arrays

ALL = ("all-linear",)


def adapt(
    loaded: LoadedModel,
    targets: tuple[str, ...] = ALL,
    *,
    rank: int = 4,
    alpha: float = 6.0,
    seed: int = 1,
    **options: Any,
) -> LoadedModel:
    """Put an adapter with random A and B into the model, in place; return it."""
    paths = target_paths(loaded.model, targets)
    add_lora(loaded.model, paths, rank=rank, alpha=alpha, seed=seed, **options)
    randomise(loaded.model, seed=seed)
    return loaded


def randomise(model: nn.Module, *, seed: int = 1) -> None:
    """Give every B random numbers, as training would; and change lengths and whole modules."""
    layers = lora_layers(model)
    for path, key in zip(
        sorted(layers), mx.random.split(mx.random.key(seed), len(layers)), strict=True
    ):
        layer = layers[path]
        layer["lora_B"] = 0.1 * mx.random.normal(layer.lora_B.shape, key=key)
        if isinstance(layer, DoRALinear):
            change = mx.random.uniform(0.8, 1.3, layer.lora_magnitude_vector.shape, key=key)
            layer["lora_magnitude_vector"] = layer.lora_magnitude_vector * change
    arrays = whole_arrays(model)
    keys = mx.random.split(mx.random.key(seed + 1), len(arrays) + 1)
    changed = [
        (name, array + 0.1 * mx.random.normal(array.shape, key=key))
        for (name, array), key in zip(arrays.items(), keys[1:], strict=True)
    ]
    model.update(tree_unflatten(changed))


def save(
    loaded: LoadedModel, folder: Path, *, name: str = "tiny", sizes: PeftConfig | None = None
) -> Path:
    """Write the adapter in the model as `macai train` does; return `folder`.

    Without `sizes` all its layers have the rank and the scale of the first one.
    """
    layer = next(iter(lora_layers(loaded.model).values()))
    rank = layer.lora_A.shape[0]
    config = AdapterConfig(
        sizes=sizes or PeftConfig(rank, layer.scale * rank),
        dropout=0.0,
        base_name=name,
        base=identify(loaded.path, chat_template=loaded.tokenizer.chat_template),
        use_dora=isinstance(layer, DoRALinear),
    )
    save_adapter_config(loaded, folder, config)
    save_adapter_weights(folder, adapter_weights(loaded))
    return folder
