"""What happens to every result of an operation: its type, its shape, its rounding."""

from collections.abc import Callable
from typing import Any

import numpy as np

from macai.errors import PackageError
from macai.mil.dtypes import compute_dtype
from macai.mil.half import rounded_to_half
from macai.mil.types import DAMAGED, ListType, TensorType, ValueType

Finish = Callable[[Any, bool], tuple[Any, int]]
"""A result, and whether it may be overwritten -> what a run goes on with, and how many of it
rounding found not to be finite."""


def finisher(type_: ValueType, *, rounds: bool, where: str) -> Finish:
    """Return what turns a result into a value of the declared type.

    Args:
        type_: As declared.
        rounds: Whether fp16 is rounded to fp16; float32 has it in either case.
        where: Names the operation and the output in the message of a PackageError.
    """
    if not isinstance(type_, TensorType):
        return _list_finisher(type_, where)
    dtype = compute_dtype(type_.dtype)
    rounds = rounds and type_.dtype.name == "fp16"
    declared = type_.shape
    is_static = declared is not None and None not in declared

    def finish(result: Any, is_new: bool) -> tuple[Any, int]:
        array = np.asarray(result)
        if array.dtype != dtype:
            array = _converted(array, dtype, type_, where)
        if array.shape != declared and (is_static or not _matches(array.shape, declared)):
            raise PackageError(
                f"{where}: computed shape {list(array.shape)}, declared {type_}",
                hint="the package declares what its program does not compute",
            )
        if not rounds:
            return array, 0
        return rounded_to_half(array, in_place=is_new and array is result)

    return finish


def _converted(array: np.ndarray, dtype: np.dtype, type_: TensorType, where: str) -> np.ndarray:
    """Change the width of a result, never its kind."""
    kinds = {"u": "i", "i": "i", "f": "f", "b": "b"}
    if kinds.get(array.dtype.kind, array.dtype.kind) != kinds.get(dtype.kind, dtype.kind):
        raise PackageError(
            f"{where}: computed {array.dtype}, declared {type_}",
            hint="the package declares what its program does not compute",
        )
    return array.astype(dtype)


def _matches(shape: tuple[int, ...], declared: tuple[int | None, ...] | None) -> bool:
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        want is None or size == want for size, want in zip(shape, declared, strict=True)
    )


def _list_finisher(type_: ValueType, where: str) -> Finish:
    def finish(result: Any, is_new: bool) -> tuple[Any, int]:
        if isinstance(type_, ListType) and not isinstance(result, list):
            raise PackageError(f"{where}: computed a tensor, declared {type_}", hint=DAMAGED)
        return result, 0

    return finish
