"""Choose a row before computing all of them.

    Take rows of Linear(x, W)    ->    Linear(Take rows of x, W)

A language model's head is its largest product, and a prompt needs the last token's alone. The
choice moves up through whatever treats rows alike: Linear, norms, and functions of one value.
"""

from dataclasses import replace
from itertools import count

from macai.coreml.graph import Graph, Node, Value

_ROWWISE = {"Linear", "RMSNorm", "LayerNorm", "SiLU", "Tanh", "AsType", "QuantizedMatmul"}
_PAIRED = {"Multiply", "Divide", "Add", "Subtract"}


def rows_first(graph: Graph) -> None:
    """Move each choice of rows on axis 1 of a [B, T, D] up as far as it goes, in place."""
    fresh = (f"rows_{n}" for n in count())
    moved = True
    while moved:
        moved = False
        producers, uses = graph.producers(), graph.uses()
        for place, node in enumerate(graph.nodes):
            before = producers.get(node.inputs[0].name) if node.op in _CHOICES else None
            if before is None or uses[node.inputs[0].name] != 1 or not _on_rows(node):
                continue
            if (pair := _swapped(graph, producers, node, before, next(fresh))) is not None:
                graph.nodes[place : place + 1] = pair
                moved = True
                break
        graph.drop_unused()


_CHOICES = {"Slice", "DynamicSlice"}


def _on_rows(node: Node) -> bool:
    x, out = node.inputs[0].shape, node.outputs[0].shape
    return len(x) == 3 and out[1] != x[1] and (x[0], x[2]) == (out[0], out[2])


def _swapped(
    graph: Graph, producers: dict[str, Node], choice: Node, before: Node, name: str
) -> list[Node] | None:
    """The choice of `before`'s operand, and `before` of that."""
    x = before.inputs[0]
    rest = before.inputs[1:]
    if before.op in _PAIRED:
        number = number_of(graph, producers, rest[0])
        if number is None:
            return None
        rest = (number,)
    elif before.op not in _ROWWISE:
        return None
    if len(x.shape) != 3 or x.shape[:2] != choice.inputs[0].shape[:2]:
        return None
    chosen = Value(name, (*choice.outputs[0].shape[:2], x.shape[2]), x.dtype)
    arguments = _for_width(choice, x.shape[2])
    first = replace(choice, inputs=(x, *choice.inputs[1:]), outputs=(chosen,), arguments=arguments)
    return [first, replace(before, inputs=(chosen, *rest), outputs=choice.outputs)]


def number_of(graph: Graph, producers: dict[str, Node], value: Value) -> Value | None:
    """Return the constant of one element that `value` is, or is a broadcast of."""
    node = producers.get(value.name)
    while node is not None and node.op == "Broadcast":
        value = node.inputs[0]
        node = producers.get(value.name)
    constant = graph.constants.get(value.name)
    return value if constant is not None and constant.size == 1 else None


def _for_width(choice: Node, width: int) -> tuple[object, ...]:
    if choice.op == "DynamicSlice":
        axes, size = choice.arguments
        return (axes, (*size[:2], width))
    begin, end, stride = choice.arguments
    return (begin, (*end[:2], width), stride)
