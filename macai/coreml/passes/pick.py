"""Make a Pick of what indexing with a number traces to.

s = Slice(x): [1, H, D] of [L, H, D]; Reshape(s): [H, D]    ->    Pick(x)

MIL takes the slice and drops its axes of size 1 at once.
"""

from dataclasses import replace

from macai.coreml.graph import Graph


def pick(graph: Graph) -> None:
    """Replace a Slice of one on some axes and the Reshape that drops them, in place."""
    producers, uses = graph.producers(), graph.uses()
    for place, node in enumerate(graph.nodes):
        before = producers.get(node.inputs[0].name) if node.op == "Reshape" else None
        if before is None or before.op != "Slice" or uses[node.inputs[0].name] != 1:
            continue
        shape, taken = before.inputs[0].shape, before.outputs[0].shape
        dropped = tuple(a for a, size in enumerate(taken) if size == 1 and shape[a] != 1)
        rest = tuple(size for a, size in enumerate(taken) if a not in dropped)
        if rest and rest == node.outputs[0].shape:
            graph.nodes[place] = replace(
                before, op="Pick", outputs=node.outputs, arguments=(*before.arguments, dropped)
            )
