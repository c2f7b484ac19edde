"""Tensors made, padded, sorted and counted."""

import numpy as np

from macai.mil.ops.size import allowed
from macai.mil.registry import Array, Ints, op

ZERO = np.array(0, np.float32)
ONE_HOT, NOT_HOT = np.array(1, np.int32), np.array(0, np.int32)
PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@op("fill")
def fill(shape: Ints, value: Array = ZERO) -> Array:
    return np.full(allowed(shape), value)


@op("fill_like")
def fill_like(ref_tensor: Array, value: Array = ZERO) -> Array:
    return np.full(ref_tensor.shape, value)


@op("range_1d")
def range_1d(end: Array, start: Array, step: Array) -> Array:
    count = max(0, int(np.ceil((float(end) - float(start)) / float(step))))
    (count,) = allowed((count,))
    return start + np.arange(count).astype(start.dtype) * step


@op("one_hot")
def one_hot(
    indices: Array,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Array = ONE_HOT,
    off_value: Array = NOT_HOT,
) -> Array:
    """An index that is not one of the vector's gives a vector of off_value."""
    allowed((*indices.shape, one_hot_vector_size))
    is_hot = indices[..., None] == np.arange(one_hot_vector_size)
    values = np.where(is_hot, on_value.reshape(()), off_value.reshape(()))
    return np.moveaxis(values, -1, axis)


@op("non_zero")
def non_zero(x: Array) -> Array:
    return np.argwhere(x).astype(np.int32)


@op("pad")
def pad(
    x: Array,
    pad: Ints,
    mode: str = "constant",
    constant_val: Array = ZERO,
) -> Array:
    """`pad` has (before, after) for each of the last len(pad)/2 axes, and may be negative."""
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"{len(pad)} paddings for a tensor of rank {x.ndim}")
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2)
    pairs += list(zip(pad[::2], pad[1::2], strict=True))
    allowed(size + before + after for size, (before, after) in zip(x.shape, pairs, strict=True))
    cut = tuple(
        slice(max(0, -before), size - max(0, -after))
        for size, (before, after) in zip(x.shape, pairs, strict=True)
    )
    grown = [(max(0, before), max(0, after)) for before, after in pairs]
    if mode == "constant":
        return np.pad(x[cut], grown, constant_values=constant_val)
    for size, pair in zip(x.shape, grown, strict=True):
        if mode == "reflect" and max(pair) >= max(size, 1):
            raise ValueError(f"cannot reflect {pair} around an axis of {size}")
    return np.pad(x[cut], grown, mode=PAD_MODES[mode])  # type: ignore[call-overload]


@op("band_part")
def band_part(x: Array, lower: int = -1, upper: int = -1) -> Array:
    """Keep `lower` diagonals below the main one and `upper` above it; -1 keeps them all."""
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    inside = (lower < 0) | (rows - columns <= lower)
    inside = inside & ((upper < 0) | (columns - rows <= upper))
    return np.where(inside, x, x.dtype.type(0))


@op("cumsum")
def cumsum(x: Array, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Array:
    x = np.flip(x, axis) if reverse else x
    sums = np.cumsum(x, axis, dtype=x.dtype)
    sums = sums - x if exclusive else sums
    return np.flip(sums, axis) if reverse else sums


def _order(x: Array, axis: int, ascending: bool) -> Array:
    """Return the sorting indices; of equals the first comes first."""
    if ascending:
        return np.argsort(x, axis, kind="stable")
    # Reversed before and after, so that equals keep their order although the sort is turned round.
    backwards = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - backwards)


@op("argsort")
def argsort(x: Array, axis: int = -1, ascending: bool = False) -> Array:
    return _order(x, axis, ascending).astype(np.int32)


@op("topk")
def topk(
    x: Array,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Array, ...]:
    """The k largest (smallest, if ascending), sorted even where the order is left open."""
    k = x.shape[axis] if k == -1 else k
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"the top {k} of {x.shape[axis]}")
    indices = np.take(_order(x, axis, ascending), np.arange(k), axis)
    values = np.take_along_axis(x, indices, axis)
    return (values, indices.astype(output_indices_dtype)) if return_indices else (values,)


@op("random_uniform", "random_normal", "random_bernoulli", "random_categorical")
def random(
    shape: Array | None = None,
    x: Array | None = None,
    mode: str = "",
    size: int = 1,
    seed: int = -1,
    prob: float = 0,
    mean: float = 0,
    stddev: float = 0,
    low: float = 0,
    high: float = 0,
) -> Array:
    raise ValueError("random numbers are not the same anywhere: give them to the model as an input")
