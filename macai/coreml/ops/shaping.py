"""What moves values without changing them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from macai.coreml.builder import mb
from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


@lowers("Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims")
def reshape(lowering: "Lowering", node: Node, x: Var) -> Var:
    """To the traced shape."""
    shape = node.outputs[0].shape
    if tuple(x.shape) == shape:
        return x
    if not shape:
        return mb.squeeze(x=x)
    if x.op is not None and x.op.op_type == "reshape":  # of another op's lowering: attention's
        x = x.op.x
    return mb.reshape(x=x, shape=list(shape))


@lowers("Transpose")
def transpose(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Axes in another order."""
    return mb.transpose(x=x, perm=list(node.arguments[0]))


@lowers("Broadcast", broadcasts=True)
def broadcast(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Nothing: MIL broadcasts where it computes, and Lowering.var does it where it must be seen."""
    return x


@lowers("Full")
def full(lowering: "Lowering", node: Node, x: Var) -> Var:
    """The value it was given, broadcast before."""
    return x


@lowers("Concatenate")
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


def _known_ends(node: Node) -> str | None:
    """Begins, and ends within an axis, are known."""
    begin, end, _ = node.arguments[:3]
    sizes = zip(begin, end, node.inputs[0].shape, strict=True)
    inner = any(is_symbolic(b) or (is_symbolic(e) and e != size) for b, e, size in sizes)
    return "a part whose place depends on a size" if inner else None


@lowers("Slice", accepts=_known_ends)
def slice_(lowering: "Lowering", node: Node, x: Var) -> Var:
    """x[begin:end:stride] on every axis; strides may be negative."""
    begin, _, stride = node.arguments
    shape = node.inputs[0].shape
    if not any(begin) and node.outputs[0].shape == shape and min(stride) > 0:
        return x
    return mb.slice_by_index(x=x, **_bounds(*node.arguments))


@lowers("Pick", accepts=_known_ends)
def pick(lowering: "Lowering", node: Node, x: Var) -> Var:
    """A slice of one on some axes, which are dropped: made of Slice by passes/pick.py."""
    *bounds, dropped = node.arguments
    squeeze_mask = [axis in dropped for axis in range(len(node.inputs[0].shape))]
    return mb.slice_by_index(x=x, **_bounds(*bounds), squeeze_mask=squeeze_mask)


def _bounds(
    begin: Sequence[int], end: Sequence[int], stride: Sequence[int]
) -> dict[str, list[int] | list[bool] | None]:
    """Return MLX's bounds as MIL has them; what is as ever is left out."""
    # A negative stride that runs to the start ends at -size - 1 in MLX, and at no index in MIL. An
    # end that only a run knows is its axis's.
    open_end = [is_symbolic(e) or (s < 0 and e < 0) for e, s in zip(end, stride, strict=True)]
    closed = [0 if o else e for o, e in zip(open_end, end, strict=True)]
    return {
        "begin": list(begin),
        "end": closed,
        "stride": list(stride) if set(stride) != {1} else None,
        "end_mask": open_end if any(open_end) else None,
    }


def _pad_axes(node: Node) -> str | None:
    """Only outwards."""
    return None if min((*node.arguments[1], *node.arguments[2]), default=0) >= 0 else "negative"


@lowers("Pad", accepts=_pad_axes)
def pad(lowering: "Lowering", node: Node, x: Var, value: Var) -> Var:
    """With one value, on any axes."""
    axes, lows, highs = node.arguments
    if node.outputs[0].is_float and value.val is not None:
        sides = {axis: pair for axis, *pair in zip(axes, lows, highs, strict=True)}
        amounts = [n for axis in range(x.rank) for n in sides.get(axis, (0, 0))]
        return mb.pad(x=x, pad=amounts, mode="constant", constant_val=value.val)
    for axis, low, high in zip(axes, lows, highs, strict=True):
        before, after = (_filled(x, value, axis, size) for size in (low, high))
        parts = [part for part in (before, x, after) if part is not None]
        x = mb.concat(values=parts, axis=axis) if len(parts) > 1 else x
    return x


def _filled(x: Var, value: Var, axis: int, size: int) -> Var | None:
    if not size:
        return None
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    if value.val is not None:
        return mb.const(val=np.full(shape, value.val, dtype=value.val.dtype))
    return mb.tile(x=mb.reshape(x=value, shape=[1] * x.rank), reps=shape)
