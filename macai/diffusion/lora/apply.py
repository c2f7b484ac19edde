"""LoRAs into a pipeline's models: beside the weights, with strengths that change, or into them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.lora.formats import LoraFile
from macai.diffusion.lora.layers import (
    Adapted,
    LoraConv2d,
    LoraLinear,
    adaptable,
    adapted,
    base_of,
    new_branch,
    put,
    set_weight,
    weight_of,
)
from macai.diffusion.lora.updates import Update, delta
from macai.errors import AdapterError, UsageError
from macai.models.arrays import scalar

Components = Mapping[str, nn.Module]
Quantised = Literal["beside", "requantise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """What became of the layers that LoRAs were for.

    Attributes:
        fused: The number of weights that were changed.
        beside: The number of quantised layers that have the LoRA beside them instead.
        loss: Of each layer that was quantised again, "component.path", what the rounding changed,
            as a part of what the LoRAs changed (Frobenius norms): 1 is as much.
    """

    fused: int
    beside: int = 0
    loss: dict[str, float] = field(default_factory=dict)


def attach(components: Components, lora: LoraFile, *, name: str, strength: float = 1.0) -> None:
    """Put a LoRA beside the weights of its layers, in place; the models are frozen.

    Args:
        components: Models that `lora` was read for, by their names in a pipeline; those that are
            loaded later get theirs in another call.
        lora: What `read_lora` returned.
        name: What `set_strengths` and `detach` call it.
        strength: What the LoRA is scaled with, apart from its own alpha; 0 switches it off.

    Raises:
        UsageError: there is an adapter of this name already, or the strength is not finite.
    """
    if name in adapters(components):
        raise UsageError(f"there is a LoRA called {name!r} already", hint="give it another name")
    for component, model in components.items():
        updates, layers = lora.modules.get(component, {}), adaptable(model)
        put(model, {p: _with_branch(layers[p], name, u) for p, u in updates.items()})
        model.freeze()
    if name in adapters(components):
        set_strengths(components, {name: strength})


def set_strengths(components: Components, strengths: Mapping[str, float]) -> None:
    """Scale the LoRAs beside the weights anew, by name; those not named stay as they are.

    Raises:
        UsageError: no LoRA has this name, or a strength is not finite.
    """
    known = adapters(components)
    if unknown := [name for name in strengths if name not in known]:
        raise UsageError(
            f"no LoRA is called {unknown[0]!r}", hint=f"there are {', '.join(known) or 'none'}"
        )
    if wrong := [name for name, s in strengths.items() if not math.isfinite(s)]:
        raise UsageError(f"the strength of {wrong[0]!r} is {strengths[wrong[0]]}")
    for layer in _adapted(components):
        for branch in layer.branches:
            if branch.name in strengths:
                branch._strength = mx.array(strengths[branch.name], mx.float32)


def detach(components: Components, names: Sequence[str] | None = None) -> None:
    """Take LoRAs away, all unless `names` are given; layers without one are plain again."""
    for model in components.values():
        plain = {}
        for path, layer in adapted(model).items():
            layer.branches = [b for b in layer.branches if names and b.name not in names]
            if not layer.branches:
                plain[path] = layer.base
        put(model, plain)


def adapters(components: Components) -> dict[str, int]:
    """Return the LoRAs beside the weights: their names, and how many layers each has."""
    return dict(Counter(b.name for layer in _adapted(components) for b in layer.branches))


def fuse(
    components: Components,
    loras: Sequence[tuple[LoraFile, float]],
    *,
    quantised: Quantised = "beside",
) -> Fused:
    """Add LoRAs to the weights, in place: W + the sum of strength * delta, computed in float32.

    Args:
        components: Models that all of `loras` were read for, by their names in a pipeline.
        loras: Each with its strength. A DoRA's norms are those of W and itself alone.
        quantised: What to do where W is quantised: put the LoRAs beside it, under their files'
            names, or quantise the sum again, which rounds part of them away (`Fused.loss`).

    Raises:
        AdapterError: a sum is not finite in the weight's type; the layer is named.
    """
    beside: dict[str, set[str]] = {}
    fused, loss = 0, {}
    for component, model in components.items():
        for path, layer in adaptable(model).items():
            updates = [
                (lora.modules[component][path], strength)
                for lora, strength in loras
                if path in lora.modules.get(component, {})
            ]
            if not updates:
                continue
            base, where = base_of(layer), f"{component}.{path}"
            if isinstance(base, nn.QuantizedLinear) and quantised == "beside":
                beside.setdefault(component, set()).add(path)
                continue
            fused += 1
            rounded = _fuse_layer(base, updates, where)
            if rounded is not None:
                loss[where] = rounded
    for lora, strength in loras:
        _attach_some(components, lora, strength, beside)
    return Fused(fused=fused, beside=sum(map(len, beside.values())), loss=loss)


def _with_branch(layer: nn.Module, name: str, update: Update) -> Adapted:
    if isinstance(layer, (LoraLinear, LoraConv2d)):
        wrapped: Adapted = layer
    else:
        wrapped = LoraConv2d(layer) if isinstance(layer, nn.Conv2d) else LoraLinear(layer)
    wrapped.branches = [*wrapped.branches, new_branch(name, update, wrapped.base)]
    return wrapped


def _adapted(components: Components) -> list[Adapted]:
    return [layer for model in components.values() for layer in adapted(model).values()]


def _attach_some(
    components: Components, lora: LoraFile, strength: float, paths: Mapping[str, set[str]]
) -> None:
    """Put a LoRA beside the weights at `paths` only, under its file's name or one made of it."""
    modules = {
        component: own
        for component, updates in lora.modules.items()
        if (own := {p: u for p, u in updates.items() if p in paths.get(component, ())})
    }
    if not modules:
        return
    taken, name, number = adapters(components), lora.name, 2
    while name in taken:
        name, number = f"{lora.name} {number}", number + 1
    attach(components, replace(lora, modules=modules), name=name, strength=strength)


def _fuse_layer(
    base: nn.Module, updates: Sequence[tuple[Update, float]], where: str
) -> float | None:
    """Add updates to one weight; return what quantising again lost, None where it was not."""
    weight = weight_of(base)
    change = sum(
        (delta(update, weight=weight, strength=strength) for update, strength in updates),
        start=mx.zeros_like(weight),
    )
    set_weight(base, weight + change)
    for update, strength in updates:
        if update.bias is not None:
            bias = strength * update.bias.astype(mx.float32)
            old = base.get("bias")
            base.bias = bias if old is None else (old + bias).astype(old.dtype)
    result = weight_of(base)
    if not scalar(mx.isfinite(result).all()):
        raise AdapterError(
            f"{where} is not finite in {base.weight.dtype} once the LoRA is in it",
            hint="use a smaller strength, or a model in bfloat16 or float32",
        )
    if not isinstance(base, nn.QuantizedLinear):
        return None
    lost, changed = (scalar(mx.linalg.norm(x)) for x in (result - weight - change, change))
    return lost / changed if changed else 0.0
