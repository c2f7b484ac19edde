"""Reductions over some axes, or all."""

from collections.abc import Callable
from typing import Any

import numpy as np

from macai.mil.registry import Array, Ints, op

Axes = tuple[int, ...] | None


def _log_sum_exp(x: Array, axes: Axes, keep: bool) -> Array:
    top = x.max(axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, np.float32(0))
    sums = np.log(np.exp(x - top).sum(axis=axes, keepdims=True)) + top
    return sums if keep else sums.reshape(x.sum(axis=axes).shape)


REDUCTIONS: dict[str, Callable[[Array, Axes, bool], Any]] = {
    "reduce_l1_norm": lambda x, axes, keep: np.abs(x).sum(axis=axes, keepdims=keep),
    "reduce_l2_norm": lambda x, axes, keep: np.sqrt(np.square(x).sum(axis=axes, keepdims=keep)),
    "reduce_log_sum": lambda x, axes, keep: np.log(x.sum(axis=axes, keepdims=keep)),
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": lambda x, axes, keep: x.max(axis=axes, keepdims=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axis=axes, keepdims=keep),
    "reduce_min": lambda x, axes, keep: x.min(axis=axes, keepdims=keep),
    "reduce_prod": lambda x, axes, keep: x.prod(axis=axes, keepdims=keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axis=axes, keepdims=keep),
    "reduce_sum_square": lambda x, axes, keep: np.square(x).sum(axis=axes, keepdims=keep),
}


def _register(name: str, function: Callable[[Array, Axes, bool], Any]) -> None:
    @op(name)
    def reduce(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
        result = np.asarray(function(x, axes, keep_dims))
        # Means of integers are integers; sums of int32 must not become int64.
        return result.astype(x.dtype, copy=False)


for _name, _function in REDUCTIONS.items():
    _register(_name, _function)


@op("reduce_argmax")
def reduce_argmax(
    x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Array:
    return np.argmax(x, axis=axis, keepdims=keep_dims).astype(output_dtype)


@op("reduce_argmin")
def reduce_argmin(
    x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Array:
    return np.argmin(x, axis=axis, keepdims=keep_dims).astype(output_dtype)
