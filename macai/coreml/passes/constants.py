"""Compute now what no input is needed for.

    a = Arange[0, 4, 1]; b = ExpandDims[0](a); c = b + 1    ->    c = a constant

MLX computes it, so that it has MLX's own roundings. Weights are left alone but for what rearranges
them without computing: a transposed weight is a weight.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from coremltools.converters.mil.mil.types.symbolic import any_symbolic

from macai.coreml.graph import Graph, Node

_LARGEST = 1 << 24  # elements; a result beyond this is left to the program
Compute = Callable[..., mx.array]


def _dtype(node: Node) -> mx.Dtype:
    dtype: mx.Dtype = getattr(
        mx, "bool_" if node.outputs[0].dtype == "bool" else node.outputs[0].dtype
    )
    return dtype


def _slice(node: Node, x: mx.array) -> mx.array:
    # An end of -size - 1, which a negative stride has for "to the first one", is so in Python too.
    return x[tuple(slice(*bounds) for bounds in zip(*node.arguments, strict=True))]


def _arange(node: Node) -> mx.array:
    start, stop, step = node.arguments
    return mx.arange(start, stop, step, dtype=_dtype(node))[: node.outputs[0].shape[0]]


COMPUTE: dict[str, Compute] = {
    "Add": lambda _, x, y: x + y,
    "Arange": _arange,
    "AsType": lambda n, x: x.astype(_dtype(n)),
    "Broadcast": lambda n, x: mx.broadcast_to(x, n.outputs[0].shape),
    "Concatenate": lambda n, *parts: mx.concatenate(list(parts), axis=n.arguments[0]),
    "Cos": lambda _, x: mx.cos(x),
    "Divide": lambda n, x, y: x / y if n.outputs[0].is_float else x // y,
    "Equal": lambda _, x, y: x == y,
    "Exp": lambda _, x: mx.exp(x),
    "ExpandDims": lambda n, x: x.reshape(n.outputs[0].shape),
    "Flatten": lambda n, x: x.reshape(n.outputs[0].shape),
    "Full": lambda _, x: x,
    "Greater": lambda _, x, y: x > y,
    "GreaterEqual": lambda _, x, y: x >= y,
    "Less": lambda _, x, y: x < y,
    "LessEqual": lambda _, x, y: x <= y,
    "LogicalAnd": lambda _, x, y: mx.logical_and(x, y),
    "LogicalNot": lambda _, x: mx.logical_not(x),
    "LogicalOr": lambda _, x, y: mx.logical_or(x, y),
    "Maximum": lambda _, x, y: mx.maximum(x, y),
    "Minimum": lambda _, x, y: mx.minimum(x, y),
    "Multiply": lambda _, x, y: x * y,
    "Negative": lambda _, x: -x,
    "NotEqual": lambda _, x, y: x != y,
    "Power": lambda _, x, y: mx.power(x, y),
    "Reshape": lambda n, x: x.reshape(n.outputs[0].shape),
    "Select": lambda _, c, x, y: mx.where(c, x, y),
    "Sin": lambda _, x: mx.sin(x),
    "Slice": _slice,
    "Sqrt": lambda n, x: mx.rsqrt(x) if n.arguments[0] else mx.sqrt(x),
    "Square": lambda _, x: mx.square(x),
    "Squeeze": lambda n, x: x.reshape(n.outputs[0].shape),
    "Subtract": lambda _, x, y: x - y,
    "Transpose": lambda n, x: mx.transpose(x, n.arguments[0]),
    "Unflatten": lambda n, x: x.reshape(n.outputs[0].shape),
}
# They give a weight another shape; it keeps its name.
_MOVES = {"ExpandDims", "Flatten", "Reshape", "Squeeze", "Unflatten"}


def fold_constants(graph: Graph) -> None:
    """Replace nodes whose operands are all constants by constants, in place."""
    kept = []
    for node in graph.nodes:
        if _foldable(graph, node):
            operands = [graph.constants[v.name] for v in node.inputs]
            result = COMPUTE[node.op](node, *operands)
            graph.constants[node.outputs[0].name] = result
            path = _path(graph, node)
            if path:
                graph.weights[node.outputs[0].name] = path
            if node.op == "Broadcast":
                kept.append(node)  # MIL broadcasts by itself: who is not folded reads the small one
        else:
            kept.append(node)
    graph.nodes = kept
    mx.eval([graph.constants[v.name] for v in _made(graph)])


def _foldable(graph: Graph, node: Node) -> bool:
    if any_symbolic(node.outputs[0].shape):
        return False
    if node.op not in COMPUTE or not all(v.name in graph.constants for v in node.inputs):
        return False
    weights = [v for v in node.inputs if v.name in graph.weights]
    if weights and node.op == "Transpose":
        return False  # of a weight: passes/linear.py takes it whole
    if weights and node.op not in _MOVES:
        return math.prod(node.outputs[0].shape) <= _LARGEST >> 6
    return math.prod(node.outputs[0].shape) <= _LARGEST


def _path(graph: Graph, node: Node) -> str:
    """A weight that was only given another shape keeps its name, with that shape in it."""
    path = graph.weights.get(node.inputs[0].name, "") if node.inputs else ""
    if not path or node.op not in _MOVES:
        return ""
    return f"{path}.{'x'.join(map(str, node.outputs[0].shape))}"


def _made(graph: Graph) -> list[Any]:
    made = {v.name for node in graph.nodes for v in node.outputs}
    used = {v.name: v for node in graph.nodes for v in node.inputs}
    used |= {v.name: v for v in graph.outputs}
    return [v for name, v in used.items() if name in graph.constants and name not in made]
