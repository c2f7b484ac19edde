"""Adapters that change something, without training: a random B."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from macai.models.adapter import (
    AdapterConfig,
    adapter_weights,
    save_adapter_config,
    save_adapter_weights,
)
from macai.models.identity import identify
from macai.models.load import LoadedModel
from macai.models.lora import add_lora, lora_layers, target_paths

ALL = ("all-linear",)


def adapt(
    loaded: LoadedModel,
    targets: tuple[str, ...] = ALL,
    *,
    rank: int = 4,
    alpha: float = 6.0,
    seed: int = 1,
) -> LoadedModel:
    """Put an adapter with random A and B into the model, in place; return it."""
    add_lora(loaded.model, target_paths(loaded.model, targets), rank=rank, alpha=alpha, seed=seed)
    randomise(loaded.model, seed=seed)
    return loaded


def randomise(model: nn.Module, *, seed: int = 1) -> None:
    """Give every B random numbers, as training would."""
    layers = lora_layers(model)
    for path, key in zip(
        sorted(layers), mx.random.split(mx.random.key(seed), len(layers)), strict=True
    ):
        layers[path]["lora_B"] = 0.1 * mx.random.normal(layers[path].lora_B.shape, key=key)


def save(loaded: LoadedModel, folder: Path, *, name: str = "tiny") -> Path:
    """Write the adapter in the model as `macai train` does; return `folder`."""
    layer = next(iter(lora_layers(loaded.model).values()))
    rank = layer.lora_A.shape[0]
    config = AdapterConfig(
        rank=rank,
        alpha=layer.scale * rank,
        scale=layer.scale,
        dropout=0.0,
        base_name=name,
        base=identify(loaded.path, chat_template=loaded.tokenizer.chat_template),
    )
    save_adapter_config(loaded, folder, config)
    save_adapter_weights(folder, adapter_weights(loaded))
    return folder
