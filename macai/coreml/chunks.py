"""A model too large for one package in several: which layers each has, and how they are written."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macai.coreml.api import ExportFunction, export_functions, graph_of, uncollected
from macai.coreml.cut import Part, cut
from macai.coreml.description import Metadata
from macai.coreml.lower import lower
from macai.coreml.package import save_package, target
from macai.coreml.passes.float32 import keep_float32
from macai.errors import UsageError

# Everything but the token ids, which an embedding makes large: see cut.cut.
_SMALL = ("position", "last")
_TARGET = "iOS18"


def plan_chunks(
    model: nn.Module,
    *,
    stored_bytes: Callable[[str, mx.array], int],
    most_bytes: int | None = None,
    count: int | None = None,
) -> list[range]:
    """Return the layers of each chunk, in order.

    Args:
        model: mlx-lm's.
        stored_bytes: What a parameter takes in the package, by its path.
        most_bytes: The most a chunk may have; as few chunks as can be are made of it.
        count: Instead, how many chunks there are; they are as equal as can be.

    Raises:
        UsageError: there are fewer layers than chunks.
    """
    sizes = _layer_bytes(model, stored_bytes)
    if count is not None and not 1 <= count <= len(sizes):
        raise UsageError(
            f"{count} chunks of a model with {len(sizes)} layers", hint="1 to the number of layers"
        )
    if count is None:
        count = 1 if most_bytes is None else len(_filled(sizes, most_bytes))
    ends = list(accumulate(sizes, initial=0))
    limits = sorted({b - a for n, a in enumerate(ends) for b in ends[n + 1 :]})
    fitting = (chunks for limit in limits if len(chunks := _filled(sizes, limit)) <= count)
    return _divided(next(fitting), count)


def _layer_bytes(model: nn.Module, stored_bytes: Callable[[str, mx.array], int]) -> list[int]:
    """Return what each layer takes; the first has the embedding too, the last the head."""
    layers = {
        id(array): n for n, layer in enumerate(model.layers) for array in _arrays(layer).values()
    }
    sizes = [0] * len(model.layers)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    heads = [m for m in model.modules() if type(m) is nn.Linear and id(m.weight) not in layers]
    rows = {id(m.weight) for m in tables}
    for path, array in _arrays(model).items():
        size = stored_bytes(path, array)
        if id(array) in layers:
            sizes[layers[id(array)]] += size
            continue
        if id(array) in rows:
            sizes[0] += array.nbytes
        if id(array) not in rows or not heads:
            sizes[-1] += size
    return sizes


def _arrays(module: nn.Module) -> dict[str, mx.array]:
    flat: Any = tree_flatten(module.parameters())
    return dict(flat)


def _filled(sizes: Sequence[int], limit: int) -> list[range]:
    """Fill chunks up to the limit, one after another; a layer beyond it is alone."""
    starts, held = [0], 0
    for layer, size in enumerate(sizes):
        if held and held + size > limit:
            starts.append(layer)
            held = 0
        held += size
    return [range(a, b) for a, b in pairwise([*starts, len(sizes)])]


def _divided(chunks: list[range], count: int) -> list[range]:
    """Divide the longest until there are as many as were asked for."""
    chunks = list(chunks)
    while len(chunks) < count:
        place = max(range(len(chunks)), key=lambda n: len(chunks[n]))
        layers = chunks[place]
        middle = layers.start + len(layers) // 2
        chunks[place : place + 1] = [range(layers.start, middle), range(middle, layers.stop)]
    return chunks


def export_chunks(
    functions: Mapping[str, ExportFunction],
    paths: Sequence[Path],
    *,
    default: str,
    metadata: Metadata,
) -> None:
    """Write functions as packages that are run one after the other, one for each of their states.

    A package's functions are called as the whole ones are; see cut.py for what they hand on.

    Raises:
        ExportError: a function cannot be divided there, or as `export_functions` does.
    """
    if len(paths) == 1:
        export_functions(functions, paths[0], default=default, metadata=metadata)
        return
    opset = target(_TARGET)
    with uncollected():
        parts = {name: _parts(function) for name, function in functions.items()}
        for number, path in enumerate(paths):
            lowered = {
                name: _lowered(parts[name][number], function, number, opset)
                for name, function in functions.items()
            }
            save_package(lowered, path, opset=opset, default=default, metadata=metadata)


def _parts(function: ExportFunction) -> list[Part]:
    small = [name for name in function.inputs if name in _SMALL]
    return cut(graph_of(function), list(function.inputs), function.outputs, recomputed=small)


def _lowered(part: Part, function: ExportFunction, number: int, opset: Any) -> Any:
    return lower(
        part.graph,
        function.settings,
        inputs=part.inputs,
        outputs=part.outputs,
        states={list(function.states)[number]: len(part.inputs)},
        keep32=keep_float32(part.graph),
        opset=opset,
    )
