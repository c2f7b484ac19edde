"""Where does a package depart from its module? The last layer of each block, side by side.

A package's operations are found by the names of the weights that they read, which are the paths of
the module's layers.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.lower import mil_name
from macai.coreml.sd.component import Component
from macai.coreml.sd.precisions import PRECISIONS
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.verify import LEAST_PSNR, psnr
from macai.coreml.watch import watching
from macai.mil import Function
from macai.mil.program import Operation

_BLOCK = re.compile(r".*?\.(?:resnets|attentions|layers|downsamplers|upsamplers|blocks)\.\d+")
_LAYERS = (nn.Conv2d, nn.Linear)
# What a lowering adds to the path of a weight that lies otherwise: see ops/.
_SUFFIXES = (".first", ".flipped", ".kernel")

Place = tuple[int, str]
"""A value: the number of the part it is in, and its name."""


def departures(
    runner: Runner,
    component: Component,
    module: nn.Module,
    sample: Mapping[str, np.ndarray],
    *,
    named: Callable[[str], str] = lambda path: path,
    function: str = "main",
) -> list[dict[str, Any]]:
    """Run a package and its module on one sample, and compare their blocks.

    Args:
        runner: Of the package.
        component: What it is.
        module: In float32.
        sample: Inputs by name.
        named: A weight's path in the module -> its name in the package.
        function: Of the package.

    Returns:
        In the module's order "block", the path of one, and of what its last layer gives the PSNR
        in dB by precision: "fp32" and "fp16". Blocks without a layer that is in the package as it
        is in the module are left out.
    """
    places = _places(runner, function)
    paths = {
        id(layer): path
        for path, layer in module.named_modules()
        if isinstance(layer, _LAYERS) and mil_name(named(f"{path}.weight")) in places
    }
    wanted: dict[str, tuple[str, mx.array]] = {}

    def seen(layer: nn.Module, _: mx.array, result: mx.array) -> None:
        if path := paths.get(id(layer)):
            wanted[_block(path)] = path, result

    with watching([(owner, "__call__") for owner in _LAYERS], seen):
        outputs = component.call(module)(*(mx.array(sample[n]) for n in component.inputs))
        mx.eval(outputs, [result for _, result in wanted.values()])
    own = {b: places[mil_name(named(f"{path}.weight"))] for b, (path, _) in wanted.items()}
    found: list[dict[str, Any]] = [{"block": block} for block in wanted]
    for precision in PRECISIONS:
        kept = {place: np.empty(0) for place, _ in own.values()}
        runner.run(sample, precision=precision, function=function, kept=kept)
        for one, (_, result) in zip(found, wanted.values(), strict=True):
            place, is_first = own[one["block"]]
            one[precision] = psnr(_turned(kept[place], is_first, result.shape), np.array(result))
    return found


def first_departure(blocks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first block that is farther from the module's than a component may be."""
    return next((b for b in blocks if any(b[p] < LEAST_PSNR[p] for p in PRECISIONS)), None)


def _block(path: str) -> str:
    """The block a layer is in: "down_blocks.0.resnets.1"; else what it is part of, or itself."""
    found = _BLOCK.match(path)
    return found[0] if found else path.partition(".linear_")[0]


def _places(runner: Runner, function: str) -> dict[str, tuple[Place, bool]]:
    """Return what layers give, and whether channels are on axis 1, by the names of weights.

    Only the default function has names; the others read the same places of the file.
    """
    found = {}
    for number, (default, own) in enumerate(
        zip(runner.parts(), runner.parts(function), strict=True)
    ):
        called = {one.stored_at: name for name, one in _weights(default)}
        names = {name: called.get(one.stored_at, name) for name, one in _weights(own)}
        for operation in own.operations:
            if operation.type in ("conv", "linear"):
                (output,) = operation.outputs
                for name in operation.input_names.get("weight", ()):
                    place = (number, output), operation.type == "conv"
                    found[_plain(names.get(name, name))] = place
    return found


def _weights(function: Function) -> Iterator[tuple[str, Operation]]:
    """Yield weights that are in the file, by name."""
    for operation in function.operations:
        if operation.stored_at is not None:
            yield next(iter(operation.outputs)), operation


def _plain(name: str) -> str:
    for suffix in map(mil_name, _SUFFIXES):
        if name.endswith(f"_weight{suffix}"):
            return name.removesuffix(suffix)
    return name


def _turned(array: np.ndarray, is_first: bool, shape: tuple[int, ...]) -> np.ndarray:
    """Return a value as the module lays it out, channels last."""
    return (np.moveaxis(array, 1, -1) if is_first else array).reshape(shape)
