"""Give a new shape once.

a = Flatten(x); b = Unflatten(a); c = Reshape(b)    ->    c = Reshape(x)
Reshape to the shape it has                         ->    nothing
"""

from dataclasses import replace

from macai.coreml.graph import Graph, Value

_SHAPES = {"Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims"}


def merge_reshapes(graph: Graph) -> None:
    """Let each change of shape begin at what was there before the first, in place."""
    sources: dict[str, Value] = {}
    names: dict[str, Value] = {}
    nodes = []
    for node in graph.nodes:
        if node.op in _SHAPES:
            source = sources.get(node.inputs[0].name, node.inputs[0])
            output = node.outputs[0]
            if source.shape == output.shape:
                names[output.name] = source
                sources[output.name] = source
                continue
            sources[output.name] = source
            node = replace(node, op="Reshape", inputs=(source,), arguments=())
        nodes.append(node)
    graph.nodes = nodes
    graph.rename(names)
