"""An adapter as macai train wrote it, or as an app gets it, for the slot of a package."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.adapter_file import AdapterFile, is_finite, read_adapter_file
from macai.coreml.slot import Pair, Place, Slot
from macai.errors import AdapterError, PackageError
from macai.models.adapter import read_adapter, read_adapter_config, require_layers
from macai.models.lora import add_lora, lora_layers

RANDOM_B = 0.05
"""Of a random adapter: each layer's result changes by a few percent in a trained model."""


def open_adapter(path: Path, slot: Slot) -> AdapterFile:
    """Read an adapter, a file for an app or a folder of macai train's, that fits into a slot.

    A folder that does not say which model it belongs to, as those of other tools, is taken for one
    of this model.

    Raises:
        AdapterError: it is broken, belongs to another model, or does not fit.
    """
    if path.is_file():
        adapter = read_adapter_file(path)
    else:
        adapter = trained_adapter(path)
        adapter = replace(adapter, base=adapter.base or slot.base)
    slot.check_base(adapter.base, str(path))
    slot.check({name: (a.shape, b.shape) for name, (a, b) in adapter.layers.items()})
    if path.is_dir():
        targets = read_adapter_config(path).targets
        require_layers(list(slot.layers), list(adapter.layers), targets, path)
    return adapter


def trained_adapter(folder: Path) -> AdapterFile:
    """Return the adapter of a folder that macai train wrote: its scale in B, in float16.

    Raises:
        AdapterError: it is broken, or not finite in float16.
    """
    config, pairs = read_adapter(folder)
    layers = {}
    for path, (a, b) in pairs.items():
        scaled = config.scale * b.astype(mx.float32).T
        pair = tuple(np.array(matrix.astype(mx.float16)) for matrix in (a, scaled))
        if not all(map(is_finite, pair)):
            raise AdapterError(
                f"{folder}: {path} is not finite in float16",
                hint="train it again with a lower learning rate",
            )
        layers[path] = (pair[0], pair[1])
    base = config.base.to_json() if config.base else {}
    return AdapterFile(name=folder.resolve().name, base=base, layers=layers)


def random_layers(slot: Slot, seed: int = 0) -> dict[str, Pair]:
    """Return an adapter that fills a slot: A as it is drawn before training, B normal."""
    rng = np.random.default_rng(seed)

    def pair(place: Place) -> Pair:
        a = rng.uniform(-1, 1, (slot.rank, place.inputs)) / np.sqrt(place.inputs)
        b = RANDOM_B * rng.standard_normal((slot.rank, place.outputs))
        return a.astype(np.float16), b.astype(np.float16)

    return {path: pair(place) for path, place in slot.layers.items()}


def put_layers(model: nn.Module, layers: Mapping[str, Pair]) -> None:
    """Put an adapter whose scale is in B into a model of MLX, in place."""
    rank = next(a.shape[0] for a, _ in layers.values())
    add_lora(model, list(layers), rank=rank, alpha=rank)
    for path, layer in lora_layers(model).items():
        a, b = layers[path]
        layer.lora_A = mx.array(a.astype(np.float32))
        layer.lora_B = mx.array(b.T.astype(np.float32))


def slot_of(slot: Slot | None, name: str) -> Slot:
    """Return a bundle's slot; PackageError if it has none."""
    if slot is None:
        raise PackageError(
            f"{name} has no room for an adapter at run time",
            hint="export it with --adapter-slot RANK",
        )
    return slot
