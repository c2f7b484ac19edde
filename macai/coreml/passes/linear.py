"""Make one Linear of what nn.Linear traces to.

    f = Flatten(x); y = Matmul(f, Transpose[1, 0](W)); Unflatten(y)        ->    Linear(x, W)
    AddMM[1, 1](x, Transpose[1, 0](W), Broadcast(b))                       ->    Linear(x, W, b)
    GatherMM(x, Transpose[0, 2, 1](W), i, j)                   ->    GatherLinear(x, W, i, j)
    AddMM[1, 1](x, Transpose[1, 0](W), c), an adapter's                    ->    Linear(x, W) + c
    AddMM[s, 1] with another factor, or W no constant                      stays

W has to be a constant: MIL's linear takes no other.
"""

from dataclasses import replace

from macai.coreml.graph import Graph, Node, Value


def linear(graph: Graph) -> None:
    """Replace matrix products with constant, transposed right sides by Linear, in place."""
    producers = graph.producers()
    nodes = []
    for node in graph.nodes:
        made = _linear(graph, producers, node)
        nodes += made or [node]
        producers |= {n.outputs[0].name: n for n in made or []}
    graph.nodes = nodes
    _drop_flattening(graph)


def _linear(graph: Graph, producers: dict[str, Node], node: Node) -> list[Node] | None:
    if node.op not in ("Matmul", "AddMM", "GatherMM"):
        return None
    perm = [0, 2, 1] if node.op == "GatherMM" else [1, 0]
    weight = _transposed_constant(graph, producers, node.inputs[1], perm)
    if weight is None:
        return None
    if node.op == "GatherMM":
        inputs = (node.inputs[0], weight, *node.inputs[2:])
        return [replace(node, op="GatherLinear", inputs=inputs, arguments=())]
    if node.inputs[0].shape[:-1] != node.outputs[0].shape[:-1]:
        return None
    product = replace(node, op="Linear", inputs=(node.inputs[0], weight), arguments=())
    if node.op == "Matmul":
        return [product]
    if node.arguments != (1.0, 1.0):
        return None
    bias = _row(graph, producers, node.inputs[2])
    if bias is not None:
        return [replace(product, inputs=(*product.inputs, bias))]
    output = node.outputs[0]
    unadded = Value(f"{output.name}_product", output.shape, output.dtype)
    total = replace(node, op="Add", inputs=(unadded, node.inputs[2]), arguments=())
    return [replace(product, outputs=(unadded,)), total]


def _transposed_constant(
    graph: Graph, producers: dict[str, Node], value: Value, perm: list[int]
) -> Value | None:
    node = producers.get(value.name)
    if node is not None and node.op == "Broadcast" and len(node.inputs[0].shape) == len(perm):
        node = producers.get(node.inputs[0].name)  # the same for each entry of a batch
    if node is None or node.op != "Transpose" or list(node.arguments[0]) != perm:
        return None
    return node.inputs[0] if node.inputs[0].name in graph.constants else None


def _row(graph: Graph, producers: dict[str, Node], value: Value) -> Value | None:
    """The constant vector that `value` is a broadcast of."""
    node = producers.get(value.name)
    while node is not None and node.op in ("Broadcast", "ExpandDims", "Reshape"):
        value = node.inputs[0]
        node = producers.get(value.name)
    return value if value.name in graph.constants and len(value.shape) == 1 else None


def _drop_flattening(graph: Graph) -> None:
    """Let Linear take all leading dimensions itself, where they were flattened only for it."""
    producers, uses = graph.producers(), graph.uses()
    users = {v.name: node for node in graph.nodes for v in node.inputs}
    names: dict[str, Value] = {}
    for place, node in enumerate(graph.nodes):
        before = producers.get(node.inputs[0].name) if node.op == "Linear" else None
        after = users.get(node.outputs[0].name)
        if before is None or after is None or uses[node.outputs[0].name] != 1:
            continue
        if before.op not in ("Flatten", "Reshape") or after.op not in ("Unflatten", "Reshape"):
            continue
        x = before.inputs[0]
        whole = Value(
            node.outputs[0].name, (*x.shape[:-1], node.outputs[0].shape[-1]), node.outputs[0].dtype
        )
        if x.shape[-1] != node.inputs[0].shape[-1] or whole.shape != after.outputs[0].shape:
            continue
        graph.nodes[place] = replace(node, inputs=(x, *node.inputs[1:]), outputs=(whole,))
        names[after.outputs[0].name] = whole
    graph.rename(names)
