"""Weights in tables of few values: which bits each gets, by its path in its module.

A mean number of bits is spent where it matters most: what each matrix at 4 bits does to a module's
outputs is measured, one at a time, and what other bits would do follows from their errors.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.allocate import choose_bits
from macai.coreml.few_values import LEAST_ELEMENTS
from macai.coreml.palettize import palettize
from macai.coreml.sd.component import Component
from macai.coreml.sd.samples import Arrays
from macai.coreml.sd.verify import reference
from macai.diffusion.lora.layers import adaptable
from macai.errors import UsageError

BITS = (2, 4, 6, 8)
BUDGET_SECONDS = 180.0
_MEASURED_AT = 4
# Small, and every step of a trajectory carries on what is rounded in them.
_LEFT_OUT = (
    "conv_in", "conv_out", "time_embedding", "add_embedding", "encoder_hid_proj",
    "controlnet_cond_embedding",
)  # fmt: skip

Progress = Callable[[str, int, int], None]


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose weights get palettes, by path."""
    return {
        path: layer
        for path, layer in adaptable(module).items()
        if not path.startswith(_LEFT_OUT) and layer.weight.size >= LEAST_ELEMENTS
    }


def apply_palettes(module: nn.Module, bits: Mapping[str, int]) -> None:
    """Round weights to tables of 2^bits values, by path, in place.

    Raises:
        UsageError: a path that the module has no such layer at.
    """
    known = layers(module)
    if unknown := [path for path in bits if path not in known]:
        raise UsageError(f"no weight is at {unknown[0]} that can have a palette")
    for path, count in bits.items():
        layer = known[path]
        layer.weight = _rounded(layer.weight, count)
        mx.eval(layer.weight)


def choose(
    module: nn.Module,
    component: Component,
    samples: Sequence[Arrays],
    bits_per_weight: float,
    *,
    budget_seconds: float = BUDGET_SECONDS,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, int]:
    """Return the bits of each weight by path.

    Args:
        module: A U-Net, a ControlNet or a text encoder in float32; it is left as it was.
        component: What runs it.
        samples: Inputs it is tried with.
        bits_per_weight: 2, 4, 6 or 8 for all weights alike, or a mean in between.
        budget_seconds: How long is measured at most, the largest weights first; of the rest it is
            estimated.
        progress: Told how far it is.

    Raises:
        UsageError: fewer than 2 or more than 8 bits.
    """
    if not BITS[0] <= bits_per_weight <= BITS[-1]:
        raise UsageError(f"{bits_per_weight:g} bits per weight", hint="2 to 8")
    known = layers(module)
    if bits_per_weight in BITS:
        return dict.fromkeys(known, int(bits_per_weight))
    errors = _errors(known)
    costs = _costs(module, component, samples, errors, budget_seconds, progress)
    sizes = {path: int(layer.weight.size) for path, layer in known.items()}
    chosen = choose_bits(costs, sizes, bits_per_weight)
    return {path: int(bits) for path, bits in chosen.items()}


def _errors(known: Mapping[str, nn.Module]) -> dict[str, dict[int, float]]:
    """Return the squared error of each weight at each number of bits, relative to the weight."""
    found = {}
    for path, layer in known.items():
        weight = layer.weight
        size = float(mx.square(weight).sum())
        found[path] = {
            bits: float(mx.square(_rounded(weight, bits) - weight).sum()) / max(size, 1e-30)
            for bits in BITS
        }
    return found


def _costs(
    module: nn.Module,
    component: Component,
    samples: Sequence[Arrays],
    errors: Mapping[str, Mapping[int, float]],
    budget_seconds: float,
    progress: Progress,
) -> dict[str, dict[float, float]]:
    """Return what each number of bits adds to the squared errors of the outputs."""
    known = layers(module)
    wanted = reference(component, module, samples)
    began = time.perf_counter()
    measured: dict[str, float] = {}
    paths = sorted(known, key=lambda path: -known[path].weight.size)
    for done, path in enumerate(paths):
        if measured and time.perf_counter() - began > budget_seconds:
            break
        progress("measuring what bits are worth", done, len(paths))
        layer = known[path]
        weight = layer.weight
        layer.weight = _rounded(weight, _MEASURED_AT)
        results = reference(component, module, samples)
        layer.weight = weight
        measured[path] = float(
            np.mean(
                [
                    np.square(result[name] - array).mean()
                    for result, one in zip(results, wanted, strict=True)
                    for name, array in one.items()
                ]
            )
        )
    worth = sum(measured.values()) / sum(errors[p][_MEASURED_AT] for p in measured)
    return {
        path: {
            float(bits): measured.get(path, worth * at[_MEASURED_AT]) * error / at[_MEASURED_AT]
            for bits, error in at.items()
        }
        for path, at in errors.items()
    }


def _rounded(weight: mx.array, bits: int) -> mx.array:
    rows = np.array(weight.astype(mx.float32)).reshape(weight.shape[0], -1)
    dense = palettize(rows, bits=bits).dense().reshape(weight.shape)
    return mx.array(dense).astype(weight.dtype)
