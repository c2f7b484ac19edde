"""Let a product turn its right side itself.

    Matmul(x, Transpose[..., last two swapped](y))    ->    Matmul(x, y), with transpose_y

MIL's matmul takes either order, so that y need not be moved. Constants are passes/linear.py's.
"""

from dataclasses import replace

from macai.coreml.graph import Graph, Node


def turned(graph: Graph) -> None:
    """Replace products of a value that was turned only for them, in place."""
    producers = graph.producers()
    nodes = []
    for node in graph.nodes:
        before = producers.get(node.inputs[1].name) if node.op == "Matmul" else None
        if before is not None and _swaps_last(before):
            inputs = (node.inputs[0], before.inputs[0])
            node = replace(node, inputs=inputs, options={"transpose_y": True})
        nodes.append(node)
    graph.nodes = nodes


def _swaps_last(node: Node) -> bool:
    rank = len(node.outputs[0].shape)
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    return node.op == "Transpose" and list(node.arguments[0]) == swapped
