"""An adapter into its model: W + scale * B A, written as a plain Hugging Face directory."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.errors import AdapterError
from macai.files import write_json
from macai.models.arrays import named_arrays, save_arrays, scalar
from macai.models.converter import FloatType
from macai.models.load import LoadedModel, dequantise
from macai.models.lora import lora_layers

SHARD_BYTES = 5_000_000_000
QUANTISATION_KEYS = ("quantization", "quantization_config")


def fuse(loaded: LoadedModel, *, dtype: mx.Dtype = mx.float32) -> None:
    """Put plain layers in place of the adapted ones, and dequantise the others, in place.

    A quantised layer is never quantised again: that would round most of the adapter away. The sum
    is computed in float32 and kept in `dtype`.
    """
    fused = []
    for path, layer in lora_layers(loaded.model).items():
        plain = nn.Linear(1, 1, bias="bias" in layer.linear)
        plain.weight = layer.merged_weight().astype(dtype)
        if "bias" in plain:
            plain.bias = layer.linear.bias
        mx.eval(plain.weight)  # one layer at a time: the parts of it are freed
        fused.append((path, plain))
    if not fused:
        raise AdapterError("the model has no adapter to fuse")
    loaded.model.update_modules(tree_unflatten(fused))
    dequantise(loaded.model)


def write_model(
    loaded: LoadedModel,
    folder: Path,
    *,
    dtype: FloatType,
    quantization: dict[str, Any] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Write model, config and tokenizer files to an existing empty folder.

    `quantization` is what config.json says of quantised layers, where there are any.

    Raises:
        AdapterError: a weight is not finite in `dtype`; the layer is named.
    """
    kind = getattr(mx, dtype)
    weights = named_arrays(loaded.model.parameters())
    index: dict[str, str] = {}
    shards = list(_shards(weights, kind.size))
    for number, names in enumerate(shards, 1):
        progress("writing weights", number - 1, len(shards))
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = {name: _cast(weights[name], kind) for name in names}
        _require_finite(arrays, dtype)
        save_arrays(folder / file, arrays, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(w.size * kind.size for w in weights.values())
        metadata = {"metadata": {"total_size": total}, "weight_map": index}
        write_json(folder / "model.safetensors.index.json", metadata)
    config = {k: v for k, v in loaded.config.items() if k not in QUANTISATION_KEYS}
    if quantization:
        config |= dict.fromkeys(QUANTISATION_KEYS, quantization)
    write_json(folder / "config.json", config | {"dtype": dtype, "torch_dtype": dtype})
    for companion in companion_files(loaded.path):
        shutil.copyfile(companion, folder / companion.name)
    progress("writing weights", len(shards), len(shards))


def companion_files(folder: Path) -> list[Path]:
    """Return the files that belong to a model but are neither weights nor its config."""
    patterns = ("tokenizer*", "*token*.json", "generation_config.json", "*.jinja", "vocab*")
    others = ("merges.txt", "LICENSE*")
    found = {f for pattern in (*patterns, *others) for f in folder.glob(pattern) if f.is_file()}
    return sorted(found)


def _shards(weights: dict[str, mx.array], item_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, weight in sorted(weights.items()):
        if names and size + weight.size * item_bytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += weight.size * item_bytes
    yield names


def _cast(weight: mx.array, kind: mx.Dtype) -> mx.array:
    return weight.astype(kind) if mx.issubdtype(weight.dtype, mx.floating) else weight


def _require_finite(arrays: dict[str, mx.array], dtype: str) -> None:
    for name, array in arrays.items():
        if not scalar(mx.isfinite(array).all()):
            raise AdapterError(
                f"{name} is not finite in {dtype}", hint="write bfloat16 or float32 with --dtype"
            )
