"""Norms of pictures rounded once: what follows them is float32 up to the next product.

    n = PictureGroupNorm(x)                n: float32 = PictureGroupNorm(x)
    a = SiLU(n)                     ->     w: float32 = SiLU(n); a = AsType(w)

and at the end, where a convolution gives what is float32 for the caller,

    c = PictureConvolution(a)              y: float32 = PictureConvolution(w)
    y: float32 = AsType(c)          ->

For a U-Net that is guided. The rows of a negative prompt and of a prompt are rounded each for
itself, and a guidance g makes of two such errors one that is sqrt(g^2 + (g - 1)^2) times as large:
ten times at 7.5. The last of them count most, for nothing evens them out. It is for a GPU: the
Neural Engine has no float32.
"""

from collections.abc import Sequence
from dataclasses import replace

from macai.coreml.graph import Graph, Node, Value

_NORMS = {"GroupNorm", "PictureGroupNorm"}
_ACTIVATIONS = {"GELU", "SiLU"}
_PRODUCTS = {"Convolution", "PictureConvolution"}


def wide_norms(graph: Graph) -> None:
    """Let float16 group norms and activations after them be float32, in place."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            readers.setdefault(value.name, []).append(node)
    returned = {value.name for value in graph.outputs}

    def only_reader(node: Node) -> Node | None:
        name = node.outputs[0].name
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in returned else None

    made: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op not in _NORMS or node.outputs[0].dtype != "float16":
            continue
        chain = [node]
        after = only_reader(node)
        if after is not None and after.op in _ACTIVATIONS:
            chain.append(after)
            after = only_reader(after)
        if after is not None and after.op in _PRODUCTS:
            last = only_reader(after)
            if last is not None and last.op == "AsType" and last.outputs[0].dtype == "float32":
                chain += [after, last]
        made |= _widened(chain)
    graph.nodes = [one for n in graph.nodes for one in made.get(n.outputs[0].name, [n])]


def _widened(chain: Sequence[Node]) -> dict[str, list[Node]]:
    """Return what each node of a chain is replaced by, by the name of its output."""
    outputs = [node.outputs[0] for node in chain]
    if chain[-1].op == "AsType":
        nodes, wide, after = chain[:-1], [*outputs[:-2], outputs[-1]], []
    else:
        last = Value(f"{outputs[-1].name}_wide", outputs[-1].shape, "float32")
        nodes, wide = chain, [*outputs[:-1], last]
        after = [Node("AsType", (last,), (outputs[-1],), where=chain[-1].where)]
    wide = [replace(value, dtype="float32") for value in wide]
    inputs = [chain[0].inputs[0], *wide[:-1]]
    made = {
        node.outputs[0].name: [replace(node, inputs=(x, *node.inputs[1:]), outputs=(y,))]
        for node, x, y in zip(nodes, inputs, wide, strict=True)
    }
    made.setdefault(outputs[-1].name, []).extend(after)
    return made
