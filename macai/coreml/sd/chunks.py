"""A U-Net too large for one package in two, as Apple's package runs them.

    sample, ...  ->  UnetChunk1  ->  hidden_0, ...   together with what the first was given   ->
    UnetChunk2  ->  noise_pred

What is handed on is float32, as chunk_mlprogram.py of apple/ml-stable-diffusion has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from macai.coreml.api import ExportFunction, graph_of, uncollected
from macai.coreml.description import Metadata
from macai.coreml.graph import Graph, Node, Value
from macai.coreml.lower import lower
from macai.coreml.package import save_package, target
from macai.coreml.passes.float32 import keep_float32
from macai.errors import ExportError

HIDDEN = "hidden_"
_NEAR = 0.1  # of the weights: so far from the middle a cut may be that hands less on
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def export_halves(
    functions: Mapping[str, ExportFunction],
    paths: Sequence[Path],
    *,
    target_name: str,
    metadata: Metadata,
) -> None:
    """Write functions as two packages, each with one half of every function.

    Raises:
        ExportError: there is no place to cut one at, or as `export_functions`.
    """
    opset = target(target_name)
    with uncollected():
        halves = {
            name: halve(graph_of(function), list(function.inputs), function.outputs)
            for name, function in functions.items()
        }
        for number, path in enumerate(paths):
            lowered = {
                name: _lowered(halves[name][number], f, opset) for name, f in functions.items()
            }
            described = _described(metadata, lowered)
            save_package(
                lowered, path, opset=opset, default=next(iter(functions)), metadata=described
            )


Half = tuple[Graph, list[str], list[str]]
"""A graph, and the names of its inputs and outputs."""


def halve(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Half, Half]:
    """Cut a graph near the middle of its weights, where the least is handed on.

    Args:
        graph: Its inputs and outputs are called `inputs` and `outputs`.
        inputs: In order.
        outputs: In order.

    Returns:
        The first half, whose outputs are called hidden_0 and on; the second, whose inputs are
        those, and what it needs of the graph's own.
    """
    place, handed = _cut(graph)
    names = [f"{HIDDEN}{n}" for n in range(len(handed))]
    given = dict(zip(inputs, graph.inputs, strict=True))
    wide = [Value(f"{HIDDEN}{n}", v.shape, "float32") for n, v in enumerate(handed)]
    narrow = [(v, w) for v, w in zip(handed, wide, strict=True) if v.dtype != "float32"]
    ends = [w if v.dtype != "float32" else v for v, w in zip(handed, wide, strict=True)]
    casts = [Node("AsType", (v,), (w,)) for v, w in narrow]
    first = _graph(graph, [*graph.nodes[:place], *casts], ends)
    back = [Node("AsType", (w,), (v,)) for v, w in narrow]
    second = _graph(graph, [*back, *graph.nodes[place:]], graph.outputs)
    used = first.uses()
    first_given = {name: v for name, v in given.items() if used.get(v.name)}
    first.inputs = list(first_given.values())
    used = second.uses()
    second_given = dict(zip(names, ends, strict=True)) | {
        name: v for name, v in given.items() if used.get(v.name)
    }
    second.inputs = list(second_given.values())
    return (first, list(first_given), names), (second, list(second_given), list(outputs))


def _graph(graph: Graph, nodes: list[Node], outputs: list[Value]) -> Graph:
    made = Graph([], list(outputs), dict(graph.constants), dict(graph.weights), nodes)
    made.drop_unused()
    return made


def _cut(graph: Graph) -> tuple[int, list[Value]]:
    """Return the number of nodes that the first half has, and what it hands on."""
    total, so_far = sum(_size(c) for c in graph.constants.values()), 0
    last = {v.name: place for place, node in enumerate(graph.nodes) for v in node.inputs}
    last |= {v.name: len(graph.nodes) for v in graph.outputs}
    live: dict[str, Value] = {}
    seen: set[str] = set()
    found: dict[int, list[Value]] = {}
    for place, node in enumerate(graph.nodes):
        live = {name: value for name, value in live.items() if last[name] >= place}
        in_reach = abs(so_far - total / 2) <= _NEAR * total
        if live and in_reach and all(v.is_float and v.shape for v in live.values()):
            found[place] = list(live.values())
        live |= {v.name: v for v in node.outputs if v.name in last}
        new = [v.name for v in node.inputs if v.name in graph.constants and v.name not in seen]
        seen.update(new)
        so_far += sum(_size(graph.constants[name]) for name in new)
    if not found:
        raise ExportError(
            "there is no place near the middle of its weights to cut the U-Net at",
            hint="leave out --chunk",
        )
    place = min(found, key=lambda place: sum(prod(v.shape) for v in found[place]))
    return place, found[place]


def _size(array: Any) -> int:
    return int(array.size) * _BYTES.get(str(array.dtype).rpartition(".")[2], 4)


def _lowered(half: Half, function: ExportFunction, opset: Any) -> Any:
    graph, inputs, outputs = half
    return lower(
        graph,
        function.settings,
        inputs=inputs,
        outputs=outputs,
        keep32=keep_float32(graph),
        opset=opset,
    )


def _described(metadata: Metadata, lowered: Mapping[str, Any]) -> Metadata:
    """Return it with words for what is handed on."""
    function = next(iter(lowered.values()))
    names = [*function.inputs, *(var.name for var in function.outputs)]
    handed = {n: "Handed on by the first half" for n in names if n.startswith(HIDDEN)}
    return replace(
        metadata, inputs={**metadata.inputs, **handed}, outputs={**metadata.outputs, **handed}
    )
