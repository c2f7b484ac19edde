"""Sizes that only a run knows: see flexible.py. The shapes of a graph have symbols for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.types.symbolic import any_symbolic, is_symbolic

from macai.coreml.builder import mb
from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers, number_like

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


@lowers("Size")
def size(lowering: "Lowering", node: Node) -> Var:
    """A number that Python computed from sizes: made by flexible.py."""
    number = measured(lowering, node.arguments[0])
    return number if node.outputs[0].shape else mb.squeeze(x=number)


def measured(lowering: "Lowering", dimension: Any) -> Var:
    """Return a dimension as int32 [1]."""
    return lowering.once(("size", dimension), lambda: _sum(lowering, dimension))


def _sum(lowering: "Lowering", dimension: Any) -> Var:
    if not is_symbolic(dimension):
        return mb.const(val=np.array([dimension], dtype=np.int32))
    total: Var | None = None
    # In order of their names: bytes of a package depend on nothing else.
    for term, factor in sorted(dimension.as_coefficients_dict().items(), key=lambda t: str(t[0])):
        count = np.array([int(factor)], dtype=np.int32)
        if not term.is_number:
            axis = _axis(lowering, term)
            part = axis if factor == 1 else mb.mul(x=axis, y=count)
        else:
            part = mb.const(val=count * int(term))
        total = part if total is None else mb.add(x=total, y=part)
    return total


def _axis(lowering: "Lowering", symbol: Any) -> Var:
    """Return the size of the first input's axis that has it, int32 [1]."""
    value, axis = next(
        (value, axis)
        for value in lowering.graph.inputs
        for axis, dimension in enumerate(value.shape)
        if dimension == symbol
    )
    shape = lowering.once(("shape", value.name), lambda: mb.shape(x=lowering.values[value.name]))
    return mb.slice_by_index(x=shape, begin=[axis], end=[axis + 1])


def extents(lowering: "Lowering", shape: Sequence[Any]) -> Var:
    """Return a shape as int32 [rank]."""
    if not any_symbolic(shape):
        return mb.const(val=np.array(shape, dtype=np.int32))
    return lowering.once(
        ("extents", tuple(shape)),
        lambda: mb.concat(values=[measured(lowering, d) for d in shape], axis=0),
    )


def counted(lowering: "Lowering", count: Any) -> Var:
    """Return 0, 1, ... below `count`, int32 [count]."""
    if not is_symbolic(count):
        return mb.const(val=np.arange(count, dtype=np.int32))
    zero, one = np.int32(0), np.int32(1)

    def make() -> Var:
        end = mb.squeeze(x=measured(lowering, count))
        return of_shape(mb.range_1d(start=zero, end=end, step=one), (count,))

    return lowering.once(("counted", count), make)


def of_shape(var: Var, shape: Sequence[Any]) -> Var:
    """Return `var`, of which coremltools cannot tell that it has this shape."""
    var._sym_type = types.tensor(var.dtype, tuple(shape))
    return var


def _only_end(node: Node) -> str | None:
    """Only the end may depend on a size."""
    start, _, step = node.arguments
    return "a start or step that depends on a size" if any_symbolic((start, step)) else None


@lowers("Arange", accepts=_only_end)
def arange(lowering: "Lowering", node: Node) -> Var:
    """start, start + step, ...: a constant, where it is known how many."""
    start, _, step = node.arguments
    (count,) = node.outputs[0].shape
    steps = counted(lowering, count)
    kind = lowering.mil_type(node.outputs[0])
    numbers = lowering.cast(steps, kind)
    if step != 1:
        numbers = mb.mul(x=numbers, y=number_like(numbers, step))
    return numbers if start == 0 else mb.add(x=numbers, y=number_like(numbers, start))
