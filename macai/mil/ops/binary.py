"""Elementwise functions of two tensors, broadcast against each other, and `select`."""

from collections.abc import Callable

import numpy as np

from macai.mil.ops.size import MAX_ELEMENTS, allowed
from macai.mil.registry import Array, op

PLAIN: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "sub": np.subtract,
}
"""The operations that numpy has as they are; `mod` has the sign of y."""


def check_broadcast(*arrays: Array) -> None:
    """Raise ValueError if arrays do not fit each other, or together make an absurd one."""
    if sum(array.size for array in arrays) ** 2 > MAX_ELEMENTS:
        allowed(np.broadcast_shapes(*(array.shape for array in arrays)))


def _register(name: str, function: Callable[[Array, Array], Array]) -> None:
    @op(name)
    def binary(x: Array, y: Array) -> Array:
        check_broadcast(x, y)
        return function(x, y)


for _name, _function in PLAIN.items():
    _register(_name, _function)


@op("real_div")
def real_div(x: Array, y: Array) -> Array:
    """Integers give integers, towards zero."""
    check_broadcast(x, y)
    if x.dtype.kind == "f":
        return np.divide(x, y)
    return np.trunc(np.divide(x, y, dtype=np.float64)).astype(x.dtype)


@op("select")
def select(cond: Array, a: Array, b: Array) -> Array:
    check_broadcast(cond, a, b)
    return np.where(cond, a, b)
