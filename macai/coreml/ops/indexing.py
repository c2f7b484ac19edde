"""Reading and writing parts of arrays, at places known now or computed."""

from typing import TYPE_CHECKING

import numpy as np
from coremltools.converters.mil import Builder as mb

from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


def _one_axis(node: Node) -> str | None:
    """Gather of whole slices along one axis is what `take` and `x[i]` trace to."""
    axes, sizes = node.arguments
    shape = node.inputs[0].shape
    if len(axes) != 1:
        return f"indices on {len(axes)} axes at once"
    whole = all(size == (1 if axis == axes[0] else shape[axis]) for axis, size in enumerate(sizes))
    return None if whole else "slices that are not whole"


@lowers("Gather", accepts=_one_axis)
def gather(lowering: "Lowering", node: Node, x: Var, indices: Var) -> Var:
    """Entries of one axis: x and indices [*I] -> [*I, *slice], the axis kept at 1 in the slice."""
    axis = node.arguments[0][0]
    if indices.rank == 0:
        taken = mb.gather(x=x, indices=mb.expand_dims(x=indices, axes=[0]), axis=axis)
    else:
        taken = mb.gather(x=x, indices=indices, axis=axis)
    if axis:  # MIL leaves the indices' axes where the axis was, MLX puts them first
        rank = max(len(node.inputs[1].shape), 1)
        front = list(range(axis, axis + rank))
        rest = [a for a in range(taken.rank) if a not in front]
        taken = mb.transpose(x=taken, perm=front + rest)
    return mb.reshape(x=taken, shape=list(node.outputs[0].shape))


@lowers("Take")
def take(lowering: "Lowering", node: Node, x: Var, indices: Var) -> Var:
    """Rows of x at int32 indices [*I] -> [*I, *row]: made of Gather by passes/take.py."""
    return mb.gather(x=x, indices=indices, axis=0)


@lowers("GatherAxis")
def gather_axis(lowering: "Lowering", node: Node, x: Var, indices: Var) -> Var:
    """take_along_axis."""
    return mb.gather_along_axis(x=x, indices=indices, axis=node.arguments[0])


def _assigns(node: Node) -> str | None:
    return None if node.arguments[0] == 1 else f"mode {node.arguments[0]}"


@lowers("ScatterAxis", accepts=_assigns)
def scatter_axis(lowering: "Lowering", node: Node, x: Var, indices: Var, updates: Var) -> Var:
    """put_along_axis."""
    return mb.scatter_along_axis(
        data=x, indices=indices, updates=updates, axis=node.arguments[1], mode="update"
    )


def _overwrites(node: Node) -> str | None:
    return None if node.arguments[0] == 4 else f"mode {node.arguments[0]}"


@lowers("SliceUpdate", accepts=_overwrites)
def slice_update(lowering: "Lowering", node: Node, x: Var, update: Var) -> Var:
    """Return x with x[begin:end:stride] written over, at places known now."""
    _, begin, end, stride = node.arguments
    return mb.slice_update(
        x=x, update=update, begin=list(begin), end=list(end), stride=list(stride)
    )


@lowers("DynamicSliceUpdate")
def dynamic_slice_update(lowering: "Lowering", node: Node, x: Var, update: Var, start: Var) -> Var:
    """Return x with a slice written over; `start`, int32, has a number for each axis given."""
    begin = _begin(lowering, node, start, node.arguments[0])
    size = np.array(node.inputs[1].shape, dtype=np.int32)
    end = lowering.once(("end", begin.name, tuple(size)), lambda: mb.add(x=begin, y=size))
    return mb.slice_update(x=x, update=update, begin=begin, end=end)


@lowers("DynamicSlice")
def dynamic_slice(lowering: "Lowering", node: Node, x: Var, start: Var) -> Var:
    """A slice of fixed size from a computed place."""
    axes, size = node.arguments
    begin = _begin(lowering, node, start, axes)
    return mb.slice_by_size(x=x, begin=begin, size=list(size))


def _begin(lowering: "Lowering", node: Node, start: Var, axes: list[int]) -> Var:
    """int32 [rank]: `start` on the axes it is for, 0 on the rest."""
    rank = len(node.inputs[0].shape)
    places = [axes.index(axis) if axis in axes else len(axes) for axis in range(rank)]

    def make() -> Var:
        flat = mb.expand_dims(x=start, axes=[0]) if start.rank == 0 else start
        padded = mb.concat(values=[flat, np.zeros(1, dtype=np.int32)], axis=0)
        return mb.gather(x=padded, indices=np.array(places, dtype=np.int32), axis=0)

    return lowering.once(("begin", start.name, tuple(places)), make)
