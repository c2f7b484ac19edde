"""One rotation of queries and keys.

RoPE(q: [B, H, T, D], p), RoPE(k: [B, KV, T, D], p)    ->    Split(RoPE(Concatenate(q, k), p))

A rotation is five operations, and a device starts for each.
"""

from collections.abc import Hashable
from dataclasses import replace
from itertools import accumulate

from macai.coreml.graph import Graph, Node, Value


def rotations(graph: Graph) -> None:
    """Join RoPEs that turn heads alike, where nothing reads one before the last, in place."""
    first_reader: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        for value in node.inputs:
            first_reader.setdefault(value.name, place)
    groups: list[list[int]] = []
    latest: dict[Hashable, list[int]] = {}
    for place, node in enumerate(graph.nodes):
        if node.op != "RoPE" or len(node.inputs[0].shape) != 4:
            continue
        group = latest.get(_turn(node), [])
        unread = all(_reader(graph, first_reader, other) > place for other in group)
        if not group or not unread:
            group = latest[_turn(node)] = []
            groups.append(group)
        group.append(place)
    made: dict[int, list[Node]] = {}
    for group in groups:
        if len(group) > 1:
            made |= {place: [] for place in group}
            made[group[-1]] = _joined([graph.nodes[place] for place in group])
    graph.nodes = [n for place, node in enumerate(graph.nodes) for n in made.get(place, [node])]


def _turn(node: Node) -> Hashable:
    """What is equal for two RoPEs that turn alike."""
    x, *others = node.inputs
    B, _, T, D = x.shape
    options = tuple(sorted(node.options.items()))
    return (B, T, D, x.dtype, tuple(v.name for v in others), options)


def _reader(graph: Graph, first_reader: dict[str, int], place: int) -> int:
    return first_reader.get(graph.nodes[place].outputs[0].name, len(graph.nodes))


def _joined(nodes: list[Node]) -> list[Node]:
    heads, last = tuple(node.inputs[0] for node in nodes), nodes[-1]
    B, _, T, D = heads[0].shape
    ends = tuple(accumulate(h.shape[1] for h in heads))
    name = "+".join(node.outputs[0].name for node in nodes)
    still, turned = (Value(f"{name}_{n}", (B, ends[-1], T, D), heads[0].dtype) for n in range(2))
    outputs = tuple(node.outputs[0] for node in nodes)
    return [
        Node("Concatenate", heads, (still,), (1,), where=last.where),
        replace(last, inputs=(still, *last.inputs[1:]), outputs=(turned,)),
        Node("Split", (turned,), outputs, (ends[:-1], 1), where=last.where),
    ]
