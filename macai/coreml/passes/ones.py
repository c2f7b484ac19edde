"""A Transpose that moves only axes of size 1 moves no value.

Transpose[0, 2, 1, 3](x: [1, 1, H, D])    ->    Reshape(x): [1, H, 1, D]

One token's heads come in such shapes. passes/reshapes.py then joins these with their neighbours.
"""

from dataclasses import replace

from macai.coreml.graph import Graph


def ones(graph: Graph) -> None:
    """Replace each such Transpose by a Reshape, in place."""
    for place, node in enumerate(graph.nodes):
        if node.op != "Transpose":
            continue
        shape = node.inputs[0].shape
        kept = [axis for axis in node.arguments[0] if shape[axis] != 1]
        if kept == sorted(kept):
            graph.nodes[place] = replace(node, op="Reshape", arguments=())
