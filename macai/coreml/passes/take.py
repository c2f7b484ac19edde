"""Make a Take of what reading rows traces to.

g = Gather[[0], (1, *row)](x, i); Squeeze[[rank of i]](g)    ->    Take(x, i)
"""

from dataclasses import replace

from macai.coreml.graph import Graph


def take(graph: Graph) -> None:
    """Replace a Gather of whole rows and the Squeeze after it, in place."""
    producers, uses = graph.producers(), graph.uses()
    nodes = []
    for node in graph.nodes:
        gather = producers.get(node.inputs[0].name) if node.op == "Squeeze" else None
        if gather is not None and gather.op == "Gather" and uses[node.inputs[0].name] == 1:
            x, *indices = gather.inputs
            axes, sizes = gather.arguments
            rank = len(indices[0].shape)
            whole = list(axes) == [0] and tuple(sizes) == (1, *x.shape[1:])
            if whole and rank and list(node.arguments[0]) == [rank]:
                node = replace(gather, op="Take", outputs=node.outputs, arguments=())
        nodes.append(node)
    graph.nodes = nodes
