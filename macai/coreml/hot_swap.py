"""An adapter as macai train wrote it, or as an app gets it, for the slot of a package."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.adapter_file import AdapterFile, is_finite, read_adapter_file
from macai.coreml.manifest import Manifest
from macai.coreml.session import States
from macai.coreml.slot import Pair, Place, Slot
from macai.errors import AdapterError, PackageError
from macai.models.adapter import read_adapter, read_adapter_config, require_layers
from macai.models.identity import identify
from macai.models.load import LoadedModel
from macai.models.lora import add_lora, linear_paths, linear_shape, lora_layers

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
    _check_base(slot.base, adapter, path)
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
        scaled = config.sizes.scale([path]) * b.astype(mx.float32).T
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
    add_lora(model, list(layers), rank=1, alpha=1)
    for path, layer in lora_layers(model).items():
        a, b = layers[path]
        layer.lora_A = mx.array(a.astype(np.float32))
        layer.lora_B = mx.array(b.T.astype(np.float32))


def chosen_adapter(manifest: Manifest, adapter: str | None) -> tuple[str | None, States]:
    """Return whose functions run and what their states hold, for what a user calls an adapter.

    Args:
        manifest: The bundle's.
        adapter: The name of one with functions of its own; or where an adapter for the slot is.

    Raises:
        UsageError, PackageError: the bundle has none of that name, and no slot.
        AdapterError: it does not fit.
    """
    own = [a["name"] for a in manifest.adapters]
    if adapter is None or adapter in own or not (manifest.slot or Path(adapter).exists()):
        return adapter, {}
    slot = slot_of(manifest.slot, manifest.name)
    return None, slot.fill(open_adapter(Path(adapter), slot).layers)


def load_adapter_file(loaded: LoadedModel, file: Path) -> None:
    """Put an adapter file into the model it belongs to, in MLX, in place.

    Raises:
        AdapterError: it is broken, or belongs to another model.
    """
    adapter = read_adapter_file(file)
    base = identify(loaded.path, chat_template=loaded.tokenizer.chat_template)
    _check_base(base.to_json(), adapter, file)
    modules = dict(loaded.model.named_modules())
    linear = set(linear_paths(loaded.model))
    for path, (a, b) in adapter.layers.items():
        if path not in linear or linear_shape(modules[path]) != (b.shape[1], a.shape[1]):
            raise AdapterError(f"{file}: the model has no layer {path} of its shape")
    put_layers(loaded.model, adapter.layers)


def _check_base(own: Mapping[str, str], adapter: AdapterFile, path: Path) -> None:
    if different := [name for name, value in own.items() if adapter.base.get(name) != value]:
        raise AdapterError(
            f"{path}: made for another model: its {' and '.join(different)} differ",
            hint="it belongs to the model it was trained on, and to packages of that",
        )


def slot_of(slot: Slot | None, name: str) -> Slot:
    """Return a bundle's slot; PackageError if it has none."""
    if slot is None:
        raise PackageError(
            f"{name} has no room for an adapter at run time",
            hint="export it with --adapter-slot RANK",
        )
    return slot
