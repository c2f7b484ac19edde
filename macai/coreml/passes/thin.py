"""One product of what several thin ones multiply.

    a = Linear(x, A); Linear(a, ...); b = Linear(x, B); Linear(b, ...)
    ->    a, b = Split(Linear(x, [A; B])); Linear(a, ...); Linear(b, ...)

Adapters have such pairs: layers that read the same value, each by a few rows. Together they are one
product, for which a device starts once, and one weight.
"""

from dataclasses import replace
from itertools import accumulate

import mlx.core as mx

from macai.coreml.graph import Graph, Node, Value

_FEW = 128  # rows: a product by more keeps a device busy


def thin(graph: Graph) -> None:
    """Join Linears by few rows of one value, whose only readers are Linears, in place."""
    uses = graph.uses()
    readers = {node.inputs[0].name for node in graph.nodes if node.op == "Linear"}
    groups: dict[tuple[str, str], list[int]] = {}
    for place, node in enumerate(graph.nodes):
        if node.op != "Linear" or len(node.inputs) != 2:
            continue
        weight, out = node.inputs[1], node.outputs[0].name
        owned = weight.name in graph.weights and uses[weight.name] == 1
        if owned and weight.shape[0] <= _FEW and out in readers and uses[out] == 1:
            groups.setdefault((node.inputs[0].name, weight.dtype), []).append(place)
    made: dict[int, list[Node]] = {}
    for places in groups.values():
        if len(places) > 1:
            made |= {place: [] for place in places}
            made[places[0]] = _joined(graph, [graph.nodes[place] for place in places])
    graph.nodes = [n for place, node in enumerate(graph.nodes) for n in made.get(place, [node])]


def _joined(graph: Graph, nodes: list[Node]) -> list[Node]:
    x, weights = nodes[0].inputs[0], [node.inputs[1] for node in nodes]
    ends = tuple(accumulate(w.shape[0] for w in weights))
    name = "+".join(w.name for w in weights)
    weight = Value(name, (ends[-1], x.shape[-1]), weights[0].dtype)
    graph.constants[name] = mx.concatenate([graph.constants[w.name] for w in weights])
    graph.weights[name] = "+".join(graph.weights[w.name] for w in weights)
    whole = Value(f"{name}_rows", (*x.shape[:-1], ends[-1]), nodes[0].outputs[0].dtype)
    outputs = tuple(node.outputs[0] for node in nodes)
    return [
        replace(nodes[0], inputs=(x, weight), outputs=(whole,)),
        Node("Split", (whole,), outputs, (ends[:-1], len(x.shape) - 1), where=nodes[0].where),
    ]
