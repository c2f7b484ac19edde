"""Parts of a tensor, read and replaced."""

import numpy as np

from macai.mil.registry import Array, Bools, Ints, op

Index = tuple[slice | int, ...]


def slice_index(
    shape: tuple[int, ...],
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> Index:
    """Return numpy's index of a MIL slice; negative positions count from the end.

    A masked begin or end is the edge of the axis; a squeezed axis is its element at `begin`.
    """
    n = len(shape)
    index: list[slice | int] = []
    parts = (begin, end, stride or (1,) * n)
    masks = (mask or (False,) * n for mask in (begin_mask, end_mask, squeeze_mask))
    for first, last, step, no_first, no_last, squeezes in zip(*parts, *masks, strict=True):
        if squeezes:
            index.append(0 if no_first else first)
        else:
            index.append(slice(None if no_first else first, None if no_last else last, step))
    if len(index) != n:
        raise ValueError(f"a slice of {len(index)} axes of a tensor of shape {list(shape)}")
    return tuple(index)


@op("slice_by_index")
def slice_by_index(
    x: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Array:
    return np.asarray(
        x[slice_index(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)]
    )


@op("slice_by_size")
def slice_by_size(x: Array, begin: Ints, size: Ints) -> Array:
    """A size of -1 means up to the end."""
    index = []
    for axis, (first, length) in enumerate(zip(begin, size, strict=True)):
        first += x.shape[axis] if first < 0 else 0
        last = x.shape[axis] if length == -1 else first + length
        if not 0 <= first <= last <= x.shape[axis]:
            raise ValueError(f"[{first}:{last}] of axis {axis} of shape {list(x.shape)}")
        index.append(slice(first, last))
    return x[tuple(index)]


def slice_update(
    x: Array,
    update: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Array:
    """Return a copy of x in which the slice is `update`, of the slice's shape."""
    index = slice_index(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x.copy()
    replace(result, index, update)
    return result


def replace(target: Array, index: Index, update: Array) -> None:
    """Write `update` into target[index]; raise ValueError if it has another shape."""
    part = target[index]
    if part.shape != update.shape:
        raise ValueError(
            f"an update of shape {list(update.shape)} for a slice of {list(part.shape)}"
        )
    target[index] = update


@op("crop")
def crop(x: Array, crop_height: Ints, crop_width: Ints) -> Array:
    """[B, C, H, W]; rows and columns to take off on each side."""
    (top, bottom), (left, right) = crop_height, crop_width
    H, W = x.shape[-2:]
    if min(top, bottom, left, right) < 0 or top + bottom > H or left + right > W:
        raise ValueError(f"cannot crop {crop_height} and {crop_width} of {list(x.shape)}")
    return x[..., top : H - bottom, left : W - right]
