"""New LoRAs to be trained, and trained ones as files have them."""

import math
from collections.abc import Sequence
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.lora.apply import Components, adapters
from macai.diffusion.lora.formats import LoraFile
from macai.diffusion.lora.layers import (
    LoraConv2d,
    LoraLinear,
    LowRankBranch,
    adaptable,
    adapted,
    put,
    shape_of,
)
from macai.diffusion.lora.updates import Update
from macai.errors import AdapterError, UsageError

Start = Literal["gaussian", "kaiming"]


def add_lora(
    model: nn.Module,
    paths: Sequence[str],
    *,
    name: str,
    rank: int,
    alpha: float,
    start: Start = "gaussian",
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Freeze `model` and put a new LoRA beside the layers at `paths`; it changes nothing at first.

    Args:
        model: A U-Net or text encoder.
        paths: As `macai.diffusion.lora.names.target_paths` gives them.
        name: The adapter's.
        rank: Of the factors, float32 [rank, in] (a convolution's [rank, height, width, in]) and
            [out, rank]; the second is zero.
        alpha: The product is scaled by alpha / rank.
        start: How the first is drawn: "gaussian" with deviation 1 / rank as diffusers' scripts do,
            "kaiming" uniformly within 1 / sqrt(fan in) as kohya's do.
        dropout: Of the layer's input, while training.
        seed: Of the numbers, which differ between layers.
    """
    if name in adapters({"": model}):
        raise UsageError(f"there is a LoRA called {name!r} already", hint="give it another name")
    model.freeze()
    layers = adaptable(model)
    wrapped: dict[str, nn.Module] = {}
    keys = mx.random.split(mx.random.key(seed), max(len(paths), 1))
    for path, key in zip(paths, keys, strict=False):
        layer = layers[path]
        if not isinstance(layer, (LoraLinear, LoraConv2d)):
            layer = LoraConv2d(layer) if isinstance(layer, nn.Conv2d) else LoraLinear(layer)
            layer.base.freeze()
        out, into, *kernel = shape_of(layer.base)
        shape = (rank, *kernel, into)
        bound = 1 / math.sqrt(into * math.prod(kernel))
        if start == "gaussian":
            down = mx.random.normal(shape, key=key) / rank
        else:
            down = mx.random.uniform(-bound, bound, shape, key=key)
        branch = LowRankBranch(
            name, down, mx.zeros((out, rank)), scale=alpha / rank, dropout=dropout
        )
        layer.branches = [*layer.branches, branch]
        wrapped[path] = layer
    put(model, wrapped)
    mx.eval(model.parameters())


def trained_lora(components: Components, name: str) -> LoraFile:
    """Return the LoRA called `name` beside the weights as a file has it, for `save`.

    Raises:
        AdapterError: there is none.
    """
    modules: dict[str, dict[str, Update]] = {}
    for component, model in components.items():
        for path, layer in adapted(model).items():
            for branch in layer.branches:
                if branch.name == name:
                    modules.setdefault(component, {})[path] = branch.to_update()
    if not modules:
        raise AdapterError(f"the model has no LoRA called {name!r}")
    return LoraFile(modules=modules, metadata={}, format="peft", name=name)
