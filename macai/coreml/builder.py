"""coremltools' builder, without an operation for each use of a constant.

It makes a constant of every operand that is a plain value, and half of a language model's
operations would be such: axes, shapes, masks. Here equal ones of a function are one.
"""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Var
from coremltools.converters.mil.mil.block import curr_block
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

_MOST = 64  # elements; larger constants are told apart where they are written

_SHARED = "macai_shared_constants"


class _SharedConstants:
    """Has the builder's functions, and what they return."""

    def __init__(self) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._functions:
            self._functions[name] = self._wrapped(getattr(Builder, name))
        return self._functions[name]

    def _wrapped(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def function(**operands: Any) -> Any:
            return make(**{k: v if k == "name" else self._shared(v) for k, v in operands.items()})

        return function

    def const(self, *, val: Any, name: str | None = None) -> Var:
        """Return a constant; one with a name is its own."""
        shared = val if name else self._shared(val)
        if isinstance(shared, Var):
            return shared
        return Builder.const(val=val, name=name) if name else Builder.const(val=val)

    def reshape(self, *, x: Var, shape: Any) -> Var:
        """Return `x` in another shape; of sizes that only a run knows there may be one."""
        if not isinstance(shape, Var):
            if sum(map(is_symbolic, shape)) > 1:
                raise NotImplementedError(f"two sizes that only a run knows: {list(shape)}")
            shape = [-1 if is_symbolic(size) else size for size in shape]
        return self._wrapped(Builder.reshape)(x=x, shape=shape)

    def _shared(self, value: Any) -> Any:
        """Return the constant of a plain value; what is none, and what is large, as it is."""
        key = None if isinstance(value, Var) else _identity(value)
        if key is None:
            return value
        # In the block itself: they know it, and whoever else had them would keep it for ever.
        constants: dict[Hashable, Var] = curr_block().__dict__.setdefault(_SHARED, {})
        if key not in constants:
            constants[key] = Builder.const(val=value)
        return constants[key]


def _identity(value: Any) -> Hashable:
    """Return what equal values of one type share, or None for what is no small plain value."""
    if isinstance(value, np.ndarray | np.generic):
        if value.size > _MOST:
            return None
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        kinds = tuple(type(item) for item in value)
        plain = value and len(value) <= _MOST and set(kinds) <= {bool, int, float}
        return (kinds, tuple(value)) if plain else None
    return (type(value), value) if isinstance(value, bool | int | float | str) else None


mb: Any = _SharedConstants()
