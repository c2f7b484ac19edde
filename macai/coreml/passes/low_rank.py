"""Say with at most 5 dimensions what MLX says with more.

    Broadcast(x), Transpose[perm](x) of rank > 5    ->    Reshape; the same on merged axes; Reshape
    Gather(x, i): [*I, 1, ..., *slice]              ->    Gather(x, i): [*I, *slice]; Reshape
    Scatter(x, i, u: [*I, 1, ..., *slice])          ->    Reshape; Scatter(x, i, u: [*I, *slice])

`mx.repeat`, `mx.tile` and pixel shuffles go through such shapes, between a Reshape before and one
after, which passes/reshapes.py then joins with these. Axes of size 1 go, and neighbours that stay
neighbours become one axis. What still has more than 5 is turned block by block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from math import prod

from macai.coreml.graph import Graph, Node, Value

_MOST = 5


def low_rank(graph: Graph) -> None:
    """Rewrite what has more than 5 dimensions, where that is possible, in place."""
    names = (f"low_rank_{n}" for n in count())
    nodes: list[Node] = []
    for node in graph.nodes:
        rank = max((len(v.shape) for v in (*node.inputs, *node.outputs)), default=0)
        if node.op == "Gather":
            nodes += _short_gather(node, names)
        elif node.op == "Scatter":
            nodes += _short_scatter(node, names)
        elif node.op == "Broadcast" and rank > _MOST and node.inputs[0].shape:
            nodes += _merged_broadcast(node, names)
        elif node.op == "Transpose" and rank > _MOST:
            nodes += _merged_transpose(node, names)
        else:
            nodes.append(node)
    graph.nodes = nodes


def _short_gather(node: Node, names: Iterator[str]) -> list[Node]:
    axes, sizes = node.arguments
    kept = [size for axis, size in enumerate(sizes) if axis not in axes or size != 1]
    output = node.outputs[0]
    if len(kept) == len(sizes):
        return [node]
    shape = (*output.shape[: len(output.shape) - len(sizes)], *kept)
    short = Value(next(names), shape, output.dtype)
    return [replace(node, outputs=(short,)), _reshape(short, output, node)]


def _short_scatter(node: Node, names: Iterator[str]) -> list[Node]:
    x, updates = node.inputs[0].shape, node.inputs[-1]
    places = updates.shape[: len(updates.shape) - len(x)]
    kept = [size for axis, size in enumerate(x) if axis not in node.arguments[1]]
    short = Value(next(names), (*places, *kept), updates.dtype)
    if prod(short.shape) != prod(updates.shape):
        return [node]
    first = _reshape(updates, short, node)
    return [first, replace(node, inputs=(*node.inputs[:-1], short))]


def _merged_broadcast(node: Node, names: Iterator[str]) -> list[Node]:
    x, output = node.inputs[0], node.outputs[0]
    before = (1,) * (len(output.shape) - len(x.shape)) + x.shape
    merged: list[tuple[int, int]] = []  # sizes before and after, of axes that are alike
    for a, b in zip(before, output.shape, strict=True):
        if b == 1:
            continue
        if merged and (merged[-1][0] == merged[-1][1]) == (a == b):
            a, b = a * merged[-1][0], b * merged.pop()[1]
        merged.append((a, b))
    if len(merged) > _MOST:
        return [node]
    small = Value(next(names), tuple(a for a, _ in merged), x.dtype)
    wide = Value(next(names), tuple(b for _, b in merged), x.dtype)
    return [
        _reshape(x, small, node),
        replace(node, inputs=(small,), outputs=(wide,), arguments=(wide.shape,)),
        _reshape(wide, output, node),
    ]


def _merged_transpose(node: Node, names: Iterator[str]) -> list[Node]:
    x, output = node.inputs[0], node.outputs[0]
    shape, perm = merged_axes(x.shape, node.arguments[0])
    value = Value(next(names), shape, x.dtype)
    nodes = [_reshape(x, value, node)]
    for sizes, order in _steps(shape, perm):
        if value.shape != sizes:
            blocks = Value(next(names), sizes, x.dtype)
            nodes.append(_reshape(value, blocks, node))
            value = blocks
        turned = Value(next(names), tuple(sizes[a] for a in order), x.dtype)
        nodes.append(replace(node, inputs=(value,), outputs=(turned,), arguments=(order,)))
        value = turned
    return [*nodes, _reshape(value, output, node)]


def merged_axes(
    shape: Sequence[int], perm: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a shape and a permutation that move the same values, of as few axes as can be."""
    runs: list[list[int]] = []
    for axis in perm:
        if shape[axis] == 1:
            continue
        follows = runs and all(shape[a] == 1 for a in range(runs[-1][-1] + 1, axis))
        if runs and axis > runs[-1][-1] and follows:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    order = sorted(range(len(runs)), key=lambda n: runs[n])
    place = {n: position for position, n in enumerate(order)}
    merged = tuple(prod(shape[a] for a in runs[n]) for n in order)
    return merged, tuple(place[n] for n in range(len(runs)))


def _steps(
    shape: tuple[int, ...], perm: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield shapes and permutations of at most 5 axes that together are `perm`."""
    if len(shape) <= _MOST:
        yield shape, perm
        return
    axes = list(range(len(shape)))
    for place, axis in enumerate(perm):
        at = axes.index(axis)
        if at == place:
            continue
        parts = (axes[:place], axes[place:at], [axis], axes[at + 1 :])
        yield tuple(prod(shape[a] for a in part) for part in parts), (0, 2, 1, 3)
        axes.insert(place, axes.pop(at))


def _reshape(x: Value, to: Value, node: Node) -> Node:
    return Node("Reshape", (x,), (to,), (to.shape,), where=node.where)
