"""Elements picked and replaced by index.

A negative index counts from the end. One that is out of range is an error here, whatever
`validate_indices` says: Core ML leaves what it gives then undefined.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from macai.mil.ops.size import allowed
from macai.mil.registry import Array, Raw, op

Mode = Callable[[Array, Any, Array], None]


def _update(target: Array, index: Any, updates: Array) -> None:
    target[index] = updates


MODES: dict[str, Mode] = {
    "update": _update,
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


@op("gather")
def gather(
    x: Raw, indices: Array, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Array:
    """X [P..., N, S...], indices [I...] → [P..., I..., S...]; as stored: an embedding is large."""
    axis %= x.ndim
    index = indices.astype(np.intp)
    allowed((*x.shape[:axis], *index.shape[batch_dims:], *x.shape[axis + 1 :]))
    if batch_dims == 0:
        return np.asarray(np.take(x, index, axis))
    flat_x = x.reshape(-1, *x.shape[batch_dims:])
    flat_index = index.reshape(-1, *index.shape[batch_dims:])
    rows = [np.take(a, i, axis - batch_dims) for a, i in zip(flat_x, flat_index, strict=True)]
    return np.stack(rows).reshape(*x.shape[:batch_dims], *rows[0].shape)


@op("gather_along_axis")
def gather_along_axis(
    x: Array, indices: Array, axis: int = 0, validate_indices: bool = False
) -> Array:
    others = [size for i, size in enumerate(x.shape) if i != axis % x.ndim]
    if [size for i, size in enumerate(indices.shape) if i != axis % x.ndim] != others:
        raise ValueError(f"indices {list(indices.shape)} along axis {axis} of {list(x.shape)}")
    return np.asarray(np.take_along_axis(x, indices.astype(np.intp), axis))


@op("gather_nd")
def gather_nd(
    x: Array, indices: Array, batch_dims: int = 0, validate_indices: bool = False
) -> Array:
    """Indices [B..., I..., K] → [B..., I..., what is left of x's axes after B and K]."""
    index = indices.astype(np.intp)
    allowed((*index.shape[:-1], *x.shape[batch_dims + index.shape[-1] :]))
    if batch_dims == 0:
        return np.asarray(x[tuple(np.moveaxis(index, -1, 0))])
    flat_x = x.reshape(-1, *x.shape[batch_dims:])
    flat_index = index.reshape(-1, *index.shape[batch_dims:])
    pairs = zip(flat_x, flat_index, strict=True)
    rows = [np.asarray(a[tuple(np.moveaxis(i, -1, 0))]) for a, i in pairs]
    return np.stack(rows).reshape(*x.shape[:batch_dims], *rows[0].shape)


@op("scatter")
def scatter(
    data: Array,
    indices: Array,
    updates: Array,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Array:
    """Data [P..., N, S...], indices [I...], updates [P..., I..., S...]."""
    result = data.copy()
    axis %= data.ndim
    index = (slice(None),) * axis + (indices.astype(np.intp),)
    MODES[mode](result, index, updates)
    return result


@op("scatter_along_axis")
def scatter_along_axis(
    data: Array,
    indices: Array,
    updates: Array,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Array:
    """Indices and updates have data's rank."""
    result = data.copy()
    index: list[Array] = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    index[axis] = indices.astype(np.intp)
    MODES[mode](result, tuple(index), updates)
    return result


@op("scatter_nd")
def scatter_nd(
    data: Array,
    indices: Array,
    updates: Array,
    mode: str = "add",
    validate_indices: bool = False,
) -> Array:
    """Indices [I..., K], updates [I..., what is left of data's axes after K]."""
    result = data.copy()
    MODES[mode](result, tuple(np.moveaxis(indices.astype(np.intp), -1, 0)), updates)
    return result
