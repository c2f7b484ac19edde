"""What moves values without changing them."""

from typing import TYPE_CHECKING

import numpy as np
from coremltools.converters.mil import Builder as mb

from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


def _rank(node: Node) -> str | None:
    rank = max(len(v.shape) for v in (*node.inputs, *node.outputs))
    return f"rank {rank}, and Core ML has at most 5" if rank > 5 else None


@lowers("Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims", accepts=_rank)
def reshape(lowering: "Lowering", node: Node, x: Var) -> Var:
    """To the traced shape, which is static."""
    shape = node.outputs[0].shape
    if tuple(x.shape) == shape:
        return x
    if not shape:
        return mb.squeeze(x=x)
    return mb.reshape(x=x, shape=list(shape))


@lowers("Transpose", accepts=_rank)
def transpose(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Axes in another order."""
    return mb.transpose(x=x, perm=list(node.arguments[0]))


@lowers("Broadcast", "BroadcastAxes", broadcasts=True)
def broadcast(lowering: "Lowering", node: Node, x: Var, *_: Var) -> Var:
    """Nothing: MIL broadcasts where it computes, and Lowering.var does it where it must be seen."""
    return x


@lowers("Full")
def full(lowering: "Lowering", node: Node, x: Var) -> Var:
    """The value it was given, broadcast before."""
    return x


@lowers("Concatenate", accepts=_rank)
def concatenate(lowering: "Lowering", node: Node, *parts: Var) -> Var:
    """Along one axis."""
    return parts[0] if len(parts) == 1 else mb.concat(values=list(parts), axis=node.arguments[0])


@lowers("Split")
def split(lowering: "Lowering", node: Node, x: Var) -> tuple[Var, ...]:
    """At indices along an axis."""
    axis = node.arguments[1]
    sizes = [v.shape[axis] for v in node.outputs]
    if len(sizes) == 1:
        return (x,)
    return tuple(mb.split(x=x, split_sizes=sizes, axis=axis))


@lowers("Slice")
def slice_(lowering: "Lowering", node: Node, x: Var) -> Var:
    """x[begin:end:stride] on every axis; strides may be negative."""
    begin, end, stride = (list(a) for a in node.arguments)
    shape = node.inputs[0].shape
    if begin == [0] * len(shape) and node.outputs[0].shape == shape and min(stride) > 0:
        return x
    # A negative stride that runs to the start ends at -size - 1 in MLX, and at no index in MIL.
    open_end = [s < 0 and e < 0 for e, s in zip(end, stride, strict=True)]
    end = [0 if o else e for o, e in zip(open_end, end, strict=True)]
    return mb.slice_by_index(x=x, begin=begin, end=end, stride=stride, end_mask=open_end)


def _pad_axes(node: Node) -> str | None:
    return None if min((*node.arguments[1], *node.arguments[2]), default=0) >= 0 else "negative"


@lowers("Pad", accepts=_pad_axes)
def pad(lowering: "Lowering", node: Node, x: Var, value: Var) -> Var:
    """With one value, on any axes: MIL's pad knows only the last ones, so it is concatenated."""
    axes, lows, highs = node.arguments
    for axis, low, high in zip(axes, lows, highs, strict=True):
        parts = [x]
        for size, place in ((low, 0), (high, len(parts))):
            if size:
                shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
                parts.insert(
                    place if place == 0 else len(parts), mb.fill(shape=shape, value=value.val)
                )
        x = mb.concat(values=parts, axis=axis) if len(parts) > 1 else x
    return x


@lowers("Repeat", accepts=_rank)
def repeat(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Each entry of an axis several times over, as passes/repeat.py finds it."""
    axis, times = node.options["axis"], node.options["times"]
    indices = np.repeat(np.arange(node.inputs[0].shape[axis], dtype=np.int32), times)
    return mb.gather(x=x, indices=indices, axis=axis)
