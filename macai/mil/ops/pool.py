"""Pools of 1, 2 or 3 spatial axes."""

import numpy as np

from macai.mil.ops.size import allowed
from macai.mil.ops.windows import Pads, pads_of
from macai.mil.registry import Array, Ints, op


@op("max_pool")
def max_pool(
    x: Array,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Array:
    """Padding never wins."""
    windows, _ = _windows(x, kernel_sizes, pad_type, strides, pad, ceil_mode, -np.inf)
    return windows.max(axis=_inner(x))


@op("avg_pool")
def avg_pool(
    x: Array,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Array:
    """What ceil_mode adds at the end never counts as part of a window."""
    windows, pads = _windows(x, kernel_sizes, pad_type, strides, pad, ceil_mode, 0)
    sums = windows.sum(axis=_inner(x))
    steps = strides or (1,) * len(kernel_sizes)
    for axis, (before, after) in enumerate(pads):
        first, last = -before, x.shape[2 + axis] + after
        if exclude_padding_from_average:
            first, last = 0, x.shape[2 + axis]
        begins = np.arange(sums.shape[2 + axis]) * steps[axis] - before
        ends = np.minimum(begins + kernel_sizes[axis], last)
        counts = np.maximum(ends - np.maximum(begins, first), 1).astype(np.float32)
        sums /= counts.reshape(-1, *[1] * (len(pads) - 1 - axis))
    return sums


@op("l2_pool")
def l2_pool(
    x: Array,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Array:
    windows, _ = _windows(x, kernel_sizes, pad_type, strides, pad, ceil_mode, 0)
    return np.sqrt(np.square(windows).sum(axis=_inner(x)))


def _inner(x: Array) -> tuple[int, ...]:
    return tuple(range(x.ndim, 2 * x.ndim - 2))


def _windows(
    x: Array,
    kernel: Ints,
    pad_type: str,
    strides: Ints | None,
    pad: Ints | None,
    ceil_mode: bool,
    filler: float,
) -> tuple[Array, Pads]:
    """Return a view [B, C, windows..., kernel...] of x padded with `filler`, and that padding."""
    steps = strides or (1,) * len(kernel)
    sizes = x.shape[2:]
    pads = pads_of(pad_type, pad, sizes, kernel, steps)
    extra = [0] * len(kernel)
    if ceil_mode:
        extra = [_extra(*a) for a in zip(sizes, kernel, steps, pads, strict=True)]
    grown = [(before, after + more) for (before, after), more in zip(pads, extra, strict=True)]
    pairs = [(0, 0), (0, 0), *grown]
    allowed(size + before + after for size, (before, after) in zip(x.shape, pairs, strict=True))
    padded = np.pad(x, pairs, constant_values=filler)
    axes = tuple(range(2, x.ndim))
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, axes)
    return views[(slice(None), slice(None), *(slice(None, None, s) for s in steps))], pads


def _extra(size: int, kernel: int, stride: int, pads: tuple[int, int]) -> int:
    """Return what must follow the padding for the last window, which starts before its end."""
    before, after = pads
    padded = size + before + after
    count = -(-(padded - kernel) // stride) + 1
    if (count - 1) * stride >= size + before and before + after > 0:
        count -= 1
    return max(0, (count - 1) * stride + kernel - padded)
