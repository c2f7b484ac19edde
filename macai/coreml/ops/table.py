"""The op table: which function lowers which primitive. docs/ops.md is made from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types

from macai.coreml.graph import Node

Var = Any  # coremltools.converters.mil.mil.Var, which has no types
Lower = Callable[..., Var | tuple[Var, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """How one primitive is lowered.

    Attributes:
        lower: (lowering, node, *operands) -> the MIL value, or one for each output.
        broadcasts: Whether operands may come with dimensions that MIL broadcasts by itself; other
            functions get every operand in its traced shape.
        casts: Whether float operands are cast to the type of the result before.
        accepts: Whether this node is supported; a reason if it is not.
        operands: How many of the node's inputs are lowered and handed on; all of them if None.
            The function itself reads the others, which are constants.
    """

    lower: Lower
    broadcasts: bool = False
    casts: bool = True
    accepts: Callable[[Node], str | None] | None = None
    operands: int | None = None


OPS: dict[str, Entry] = {}


def lowers(
    *names: str,
    broadcasts: bool = False,
    casts: bool = True,
    accepts: Callable[[Node], str | None] | None = None,
    operands: int | None = None,
) -> Callable[[Lower], Lower]:
    """Register a function for the primitives called `names`: see Entry."""

    def register(function: Lower) -> Lower:
        for name in names:
            if name in OPS:
                raise ValueError(f"{name} is lowered twice")
            OPS[name] = Entry(function, broadcasts, casts, accepts, operands)
        return function

    return register


def number_like(x: Var, value: float) -> np.generic:
    """Return a number of the type of `x`."""
    kinds: dict[object, type[np.generic]] = {
        types.fp16: np.float16,
        types.int32: np.int32,
        types.bool: np.bool_,
    }
    return kinds.get(x.dtype, np.float32)(value)
