"""Reading and writing parts of arrays, at places known now or computed."""

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from coremltools import target
from coremltools.converters.mil.mil.block import curr_opset_version
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from macai.coreml.builder import mb
from macai.coreml.graph import Node, Value
from macai.coreml.ops.sizes import extents
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering

_MOVES = {"AsType", "Broadcast", "ExpandDims", "Flatten", "Reshape", "Squeeze", "Transpose"}
# MLX's enumeration of what a write does to what is there, in Scatter and SliceUpdate.
_WRITES = {0: "max", 1: "min", 2: "add", 3: "mul", 4: "update"}


def _whole_slices(node: Node) -> str | None:
    """Single indices on some axes, the others whole."""
    axes, sizes = node.arguments
    shape = node.inputs[0].shape
    whole = all(size == (1 if axis in axes else shape[axis]) for axis, size in enumerate(sizes))
    return None if whole else "slices that are not whole"


@lowers("Gather", accepts=_whole_slices)
def gather(lowering: "Lowering", node: Node, x: Var, *indices: Var) -> Var:
    """Entries of x at indices [*I] on some axes -> [*I, *slice]."""
    axes = list(node.arguments[0])
    shape, out = node.inputs[0].shape, list(node.outputs[0].shape)
    if len(axes) > 1:
        places = _coordinates(lowering, node, axes, indices)
        return _shaped(mb.gather_nd(x=_axes_first(x, axes), indices=places), out)
    axis = axes[0]
    places = nonnegative(lowering, node.inputs[1], indices[0], shape[axis])
    if places.rank == 0:
        places = mb.expand_dims(x=places, axes=[0])
    taken = mb.gather(x=x, indices=places, axis=axis)
    if axis:  # MIL leaves the indices' axes where the axis was, MLX puts them first
        front = list(range(axis, axis + places.rank))
        rest = [a for a in range(taken.rank) if a not in front]
        taken = mb.transpose(x=taken, perm=front + rest)
    return _shaped(taken, out)


def _shaped(x: Var, shape: list[int]) -> Var:
    if list(x.shape) == shape:
        return x
    return mb.reshape(x=x, shape=shape) if shape else mb.squeeze(x=x)


def _coordinates(
    lowering: "Lowering", node: Node, axes: list[int], indices: tuple[Var, ...]
) -> Var:
    """int32 [*I, len(axes)] of index arrays, one an axis, that are alike in shape."""
    shape = node.inputs[0].shape
    values = node.inputs[1 : 1 + len(axes)]
    parts = [
        nonnegative(lowering, value, var, shape[axis])
        for axis, value, var in zip(axes, values, indices, strict=True)
    ]
    if len(parts) == 1 and parts[0].rank:
        return mb.expand_dims(x=parts[0], axes=[-1])
    return mb.stack(values=parts, axis=-1)


def _axes_first(x: Var, axes: list[int]) -> Var:
    perm = axes + [a for a in range(x.rank) if a not in axes]
    return x if perm == sorted(perm) else mb.transpose(x=x, perm=perm)


def nonnegative(lowering: "Lowering", value: Value, var: Var, size: int) -> Var:
    """Return indices counted from the start: since iOS 17 MIL takes no others."""
    known = lowering.array(value)
    if known is not None:
        return lowering.const(np.where(known < 0, known + size, known), "int32")
    if _is_unsigned(lowering, value):
        return var
    key = ("nonnegative", var.name, size)
    return lowering.once(key, lambda: _from_start(var, size))


def _from_start(var: Var, size: int) -> Var:
    below = mb.less(x=var, y=np.int32(0))
    return mb.select(cond=below, a=mb.add(x=var, y=np.int32(size)), b=var)


def _is_unsigned(lowering: "Lowering", value: Value) -> bool:
    producers = lowering.producers
    while not value.dtype.startswith("uint"):
        node = producers.get(value.name)
        if node is None or node.op not in _MOVES:
            return False
        value = node.inputs[0]
    return True


@lowers("Take")
def take(lowering: "Lowering", node: Node, x: Var, indices: Var) -> Var:
    """Rows of x at int32 indices [*I] -> [*I, *row]: made of Gather by passes/take.py.

    Rows of a weight are an embedding's: token ids are not negative, and are not looked at.
    """
    if node.inputs[0].name not in lowering.graph.weights:
        indices = nonnegative(lowering, node.inputs[1], indices, node.inputs[0].shape[0])
    return mb.gather(x=x, indices=indices, axis=0)


@lowers("GatherAxis")
def gather_axis(lowering: "Lowering", node: Node, x: Var, indices: Var) -> Var:
    """take_along_axis."""
    axis = node.arguments[0]
    places = nonnegative(lowering, node.inputs[1], indices, node.inputs[0].shape[axis])
    return mb.gather_along_axis(x=x, indices=places, axis=axis)


@lowers("ScatterAxis")
def scatter_axis(lowering: "Lowering", node: Node, x: Var, indices: Var, updates: Var) -> Var:
    """put_along_axis, or a sum there (MLX's enumeration: 1, 0)."""
    mode, axis = node.arguments
    places = nonnegative(lowering, node.inputs[1], indices, node.inputs[0].shape[axis])
    return mb.scatter_along_axis(
        data=x, indices=places, updates=updates, axis=axis, mode="update" if mode else "add"
    )


def _whole_updates(node: Node) -> str | None:
    """Single indices on some axes, the others whole."""
    axes, shape = node.arguments[1], node.inputs[0].shape
    others = prod(size for axis, size in enumerate(shape) if axis not in axes)
    whole = prod(node.inputs[-1].shape) == prod(node.inputs[1].shape) * others
    return None if whole and axes else "slices that are not whole"


@lowers("Scatter", accepts=_whole_updates)
def scatter(lowering: "Lowering", node: Node, x: Var, *rest: Var) -> Var:
    """Write, add, multiply or keep extremes at indices [*I] on some axes; updates [*I, *slice]."""
    *indices, updates = rest
    mode, axes = _WRITES[node.arguments[0]], list(node.arguments[1])
    shape, given = node.inputs[0].shape, node.inputs[1].shape or (1,)
    others = [a for a in range(len(shape)) if a not in axes]
    if not node.inputs[1].shape:
        indices = [mb.expand_dims(x=i, axes=[0]) for i in indices]
    places = _coordinates(lowering, node, axes, tuple(indices))
    new = mb.reshape(x=updates, shape=[*given, *(shape[a] for a in others)])
    done = mb.scatter_nd(data=_axes_first(x, axes), indices=places, updates=new, mode=mode)
    perm = axes + others
    back = [perm.index(a) for a in range(len(shape))]
    return done if back == sorted(back) else mb.transpose(x=done, perm=back)


@lowers("SliceUpdate")
def slice_update(lowering: "Lowering", node: Node, x: Var, update: Var) -> Var:
    """Return x with x[begin:end:stride] written over, or added to, at places known now."""
    mode, *bounds = node.arguments
    how, shape = _WRITES[mode], node.inputs[0].shape
    # A size that only a run knows is the whole axis: other ends that depend on one are no numbers.
    whole = [is_symbolic(e) and e == size for e, size in zip(bounds[1], shape, strict=True)]
    bounds[1] = [0 if w else e for w, e in zip(whole, bounds[1], strict=True)]
    begin, end, stride = ([int(n) for n in numbers] for numbers in bounds)
    if how == "update" and min(stride, default=1) > 0 and curr_opset_version() >= target.iOS18:
        mask = {"end_mask": whole} if any(whole) else {}
        return mb.slice_update(x=x, update=update, begin=begin, end=end, stride=stride, **mask)
    # An end below zero with a negative stride stands for "to the first one".
    triples = zip(begin, end, stride, strict=True)
    window = tuple(slice(b, None if s < 0 and e < 0 else e, s) for b, e, s in triples)
    places = np.arange(prod(shape), dtype=np.int32).reshape(shape)[window]
    return _written(x, places.reshape(-1), update, how, shape)


def _written(x: Var, places: Var, update: Var, how: str, shape: tuple[int, ...]) -> Var:
    """Return x with flat `places` written."""
    flat, new = mb.reshape(x=x, shape=[-1]), mb.reshape(x=update, shape=[-1])
    done = mb.scatter(data=flat, indices=places, updates=new, axis=0, mode=how)
    return mb.reshape(x=done, shape=list(shape))


@lowers("DynamicSliceUpdate")
def dynamic_slice_update(lowering: "Lowering", node: Node, x: Var, update: Var, start: Var) -> Var:
    """Return x with a slice written over; `start`, int32, has a number for each axis given."""
    begin = _begin(lowering, node, start, list(node.arguments[0]))
    shape, size = node.inputs[0].shape, node.inputs[1].shape
    if curr_opset_version() >= target.iOS18:
        end = lowering.once(
            ("end", begin.name, size), lambda: mb.add(x=begin, y=extents(lowering, size))
        )
        return mb.slice_update(x=x, update=update, begin=begin, end=end)
    steps = np.array([prod(shape[a + 1 :]) for a in range(len(shape))], dtype=np.int32)
    window = np.arange(prod(shape), dtype=np.int32).reshape(shape)
    places = window[tuple(slice(n) for n in size)].reshape(-1)
    first = mb.reduce_sum(x=mb.mul(x=begin, y=steps), axes=[0], keep_dims=True)
    return _written(x, mb.add(x=first, y=places), update, "update", shape)


@lowers("DynamicSlice")
def dynamic_slice(lowering: "Lowering", node: Node, x: Var, start: Var) -> Var:
    """A slice of fixed size from a computed place."""
    axes, size = node.arguments
    begin = _begin(lowering, node, start, list(axes))
    return mb.slice_by_size(x=x, begin=begin, size=list(size))


def _begin(lowering: "Lowering", node: Node, start: Var, axes: list[int]) -> Var:
    """int32 [rank]: `start` on the axes it is for, 0 on the rest."""
    rank = len(node.inputs[0].shape)
    if axes == list(range(rank)) and start.rank == 1:
        return start
    places = [axes.index(axis) if axis in axes else len(axes) for axis in range(rank)]

    def make() -> Var:
        flat = mb.expand_dims(x=start, axes=[0]) if start.rank == 0 else start
        padded = mb.concat(values=[flat, np.zeros(1, dtype=np.int32)], axis=0)
        return mb.gather(x=padded, indices=np.array(places, dtype=np.int32), axis=0)

    return lowering.once(("begin", start.name, tuple(places)), make)


@lowers("AsStrided")
def as_strided(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Read x, flat, at places that shape, strides and an offset give."""
    shape, strides, offset = node.arguments
    grid = np.indices(tuple(shape), dtype=np.int64).reshape(len(shape), -1)
    places = offset + np.array(strides, dtype=np.int64) @ grid
    flat = mb.reshape(x=x, shape=[-1])
    taken = mb.gather(x=flat, indices=places.astype(np.int32), axis=0)
    return mb.reshape(x=taken, shape=list(node.outputs[0].shape))
