"""Make a Mean of a sum that is divided by how many it adds.

    s = Reduce[sum, axes](x); m = s * (1 / n), or s / n        ->    m = Mean[axes](x)

A sum of a few thousand activations can be beyond float16, their mean is not.
"""

from dataclasses import replace
from math import prod

import mlx.core as mx

from macai.coreml.graph import Graph, Node, Value
from macai.coreml.passes.rows_first import number_of
from macai.models.arrays import scalar

_SUM = 2
_SHAPES = {"Squeeze", "Reshape"}


def mean(graph: Graph) -> None:
    """Replace products and quotients of a sum by its mean, in place."""
    producers, uses = graph.producers(), graph.uses()
    nodes = []
    for node in graph.nodes:
        total, moves = _sum(producers, uses, node)
        if total is None or not _averages(graph, producers, node, total):
            nodes.append(node)
            continue
        kept = Value(f"{node.outputs[0].name}_mean", total.outputs[0].shape, total.outputs[0].dtype)
        output = node.outputs[0] if not moves else kept
        nodes.append(replace(total, op="Mean", outputs=(output,), arguments=total.arguments[1:]))
        if moves:
            nodes.append(Node("Reshape", (kept,), node.outputs, (), where=node.where))
    graph.nodes = nodes


def _sum(producers: dict[str, Node], uses: dict[str, int], node: Node) -> tuple[Node | None, bool]:
    """Return the sum that a product or quotient begins with, and whether it was given a shape."""
    if node.op not in ("Multiply", "Divide"):
        return None, False
    value, moves = node.inputs[0], False
    while uses[value.name] == 1 and (before := producers.get(value.name)) is not None:
        if before.op == "Reduce":
            is_sum = before.arguments[0] == _SUM and before.inputs[0].is_float
            return (before if is_sum else None), moves
        if before.op not in _SHAPES:
            break
        value, moves = before.inputs[0], True
    return None, False


def _averages(graph: Graph, producers: dict[str, Node], node: Node, total: Node) -> bool:
    number = number_of(graph, producers, node.inputs[1])
    if number is None or node.outputs[0].shape != node.inputs[0].shape:
        return False
    terms = prod(total.inputs[0].shape[axis] for axis in total.arguments[1])
    constant = graph.constants[number.name].reshape(-1)[0]
    wanted = mx.array(terms if node.op == "Divide" else 1 / terms, dtype=constant.dtype)
    return scalar(constant) == scalar(wanted)  # 999 of 1,000 is the variance of a sample
