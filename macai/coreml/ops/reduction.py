"""Sums, extremes, softmax, orders: what reads a whole axis."""

from typing import TYPE_CHECKING

from coremltools.converters.mil.mil import types

from macai.coreml.builder import mb
from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers, number_like

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering

# MLX's enumeration of reductions.
_AND, _OR, _SUM, _PROD, _MIN, _MAX = range(6)


@lowers("Reduce")
def reduce(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[...] -> [...] with the reduced axes kept at 1."""
    mode, axes = node.arguments
    axes = list(axes)
    if mode in (_AND, _OR) and node.inputs[0].dtype != "bool":
        x = mb.not_equal(x=x, y=number_like(x, 0))
    if node.inputs[0].dtype == "bool" or mode in (_AND, _OR):
        x = mb.cast(x=x, dtype="int32")
    function = {
        _AND: mb.reduce_min,
        _OR: mb.reduce_max,
        _SUM: mb.reduce_sum,
        _PROD: mb.reduce_prod,
        _MIN: mb.reduce_min,
        _MAX: mb.reduce_max,
    }[mode]
    result = function(x=x, axes=axes, keep_dims=True)
    return mb.cast(x=result, dtype="bool") if node.outputs[0].dtype == "bool" else result


@lowers("Mean")
def mean(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[...] -> [...] with the reduced axes kept at 1: made of Reduce by passes/mean.py."""
    return mb.reduce_mean(x=x, axes=list(node.arguments[0]), keep_dims=True)


@lowers("ArgReduce")
def arg_reduce(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[...] -> int32 [...] with the axis kept at 1 (MLX's enumeration: 0 min, 1 max)."""
    mode, axis = node.arguments
    function = mb.reduce_argmax if mode == 1 else mb.reduce_argmin
    return function(x=x, axis=axis, keep_dims=True)


@lowers("Softmax")
def softmax(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Over the last axis; in float32 where the model asked for it ("precise")."""
    if not node.arguments[0]:
        return mb.softmax(x=x, axis=-1)
    wide = mb.softmax(x=lowering.cast(x, "fp32"), axis=-1)
    return lowering.cast(wide, lowering.mil_type(node.outputs[0]))


@lowers("LogSumExp")
def log_sum_exp(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Over the last axis, kept at 1; shifted by the greatest value, so that it cannot overflow.

    In float32: 65,504 is a sum that a large vocabulary can reach.
    """
    x = lowering.cast(x, "fp32")
    top = mb.reduce_max(x=x, axes=[-1], keep_dims=True)
    total = mb.reduce_sum(x=mb.exp(x=mb.sub(x=x, y=top)), axes=[-1], keep_dims=True)
    return mb.add(x=mb.log(x=total), y=top)


def _running_sum(node: Node) -> str | None:
    """Sums only."""
    return None if node.arguments[0] == _SUM else f"scan of kind {node.arguments[0]}"


@lowers("Scan", accepts=_running_sum)
def scan(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Running sums along an axis."""
    _, axis, reverse, inclusive = node.arguments
    return mb.cumsum(x=x, axis=axis, reverse=reverse, exclusive=not inclusive)


@lowers("ArgSort", "ArgPartition")
def arg_sort(lowering: "Lowering", node: Node, x: Var) -> Var:
    """The order of an axis; a partition is sorted whole, which is one of its answers."""
    return mb.argsort(x=_ordered(x), axis=node.arguments[-1], ascending=True)


@lowers("Sort", "Partition")
def sort(lowering: "Lowering", node: Node, x: Var) -> Var:
    """An axis in ascending order; a partition is sorted whole, which is one of its answers."""
    axis, number = node.arguments[-1], _ordered(x)
    order = mb.argsort(x=number, axis=axis, ascending=True)
    values = mb.gather_along_axis(x=number, indices=order, axis=axis)
    return mb.cast(x=values, dtype="bool") if number is not x else values


def _ordered(x: Var) -> Var:
    """MIL puts no booleans in order."""
    return mb.cast(x=x, dtype="int32") if x.dtype == types.bool else x
