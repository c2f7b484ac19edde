"""Convolutions of 1, 2 or 3 spatial axes, as matrix products."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from macai.mil.ops.size import allowed
from macai.mil.ops.windows import pads_of, spans_of
from macai.mil.registry import Array, Ints, op

Index = tuple[Any, ...]

COLUMNS_BYTES = 32 << 20
"""How much of the input is laid out for one matrix product at a time."""


@op("conv")
def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Array:
    """[B, C, D...], [N, C/groups, K...], [N] → [B, N, ...]."""
    n = x.ndim - 2
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    spans = spans_of(weight.shape[2:], dilations)
    pads = pads_of(pad_type, pad, x.shape[2:], spans, strides)
    if groups < 1 or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise ValueError(f"{groups} groups of {list(weight.shape)} for {list(x.shape)}")
    x = _padded(x, pads)
    sizes = tuple(
        (size - span) // stride + 1
        for size, span, stride in zip(x.shape[2:], spans, strides, strict=True)
    )
    y = np.empty(allowed((x.shape[0], weight.shape[0], *sizes)), np.float32)
    if weight.shape[1] == 1 and groups > 1:
        _depthwise(x, weight, y, strides, dilations)
    else:
        _grouped(x, weight, y, strides, dilations, groups)
    if bias is not None:
        y += bias.reshape(-1, *[1] * n)
    return y


def _padded(x: Array, pads: list[tuple[int, int]]) -> Array:
    if not any(before or after for before, after in pads):
        return x
    pairs = [(0, 0), (0, 0), *pads]
    allowed(size + before + after for size, (before, after) in zip(x.shape, pairs, strict=True))
    return np.pad(x, pairs)


def _taps(
    kernel: Ints, sizes: Ints, strides: Ints, dilations: Ints
) -> Iterator[tuple[Index, Index]]:
    """Yield each position of the kernel, and where all windows have it in the input."""
    for position in product(*map(range, kernel)):
        yield (
            position,
            tuple(
                slice(p * d, p * d + (size - 1) * s + 1, s)
                for p, d, size, s in zip(position, dilations, sizes, strides, strict=True)
            ),
        )


def _depthwise(x: Array, weight: Array, y: Array, strides: Ints, dilations: Ints) -> None:
    """Every output channel has one input channel: products of numbers, not of matrices."""
    y[...] = 0
    n = x.ndim - 2
    each = weight.shape[0] // x.shape[1]
    for position, index in _taps(weight.shape[2:], y.shape[2:], strides, dilations):
        part = x[(slice(None), slice(None), *index)]
        part = np.repeat(part, each, axis=1) if each > 1 else part
        y += part * weight[(slice(None), 0, *position)].reshape(-1, *[1] * n)


def _grouped(
    x: Array, weight: Array, y: Array, strides: Ints, dilations: Ints, groups: int
) -> None:
    kernel, (inputs, outputs) = weight.shape[2:], (weight.shape[1], weight.shape[0] // groups)
    rows, line = inputs * math.prod(kernel), math.prod(y.shape[3:])
    matrix = weight.reshape(groups, outputs, rows)
    lines = min(y.shape[2], max(1, COLUMNS_BYTES // max(1, 4 * rows * line)))
    room = np.empty(rows * lines * line, np.float32)  # once: pages are cleared at their first use
    for b, group in product(range(x.shape[0]), range(groups)):
        source = x[b, group * inputs : (group + 1) * inputs]
        target = y[b, group * outputs : (group + 1) * outputs].reshape(outputs, -1)
        for start in range(0, y.shape[2], lines):
            sizes = (min(lines, y.shape[2] - start), *y.shape[3:])
            columns = _columns(
                source[:, start * strides[0] :], kernel, sizes, strides, dilations, room
            )
            part = target[:, start * line : start * line + columns.shape[1]]
            np.matmul(matrix[group], columns, out=part)


def _columns(
    x: Array, kernel: Ints, sizes: Ints, strides: Ints, dilations: Ints, room: Array
) -> Array:
    """[C, D...] → [C · kernel, windows], in `room`: a column has all that one window covers."""
    C = x.shape[0]
    if math.prod(kernel) == 1 and x.shape[1:] == tuple(sizes):
        return x.reshape(C, -1)
    shape = C, math.prod(kernel), *sizes
    columns = room[: math.prod(shape)].reshape(shape)
    for number, (_, index) in enumerate(_taps(kernel, sizes, strides, dilations)):
        columns[:, number] = x[(slice(None), *index)]
    return columns.reshape(C * math.prod(kernel), -1)


@op("conv_transpose")
def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Array:
    """[B, C, D...], [C, N/groups, K...], [N] → [B, N, ...]; `pad` is taken off the result."""
    n = x.ndim - 2
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    spans = spans_of(weight.shape[2:], dilations)
    full = tuple((d - 1) * s + k for d, s, k in zip(x.shape[2:], strides, spans, strict=True))
    firsts, sizes = _kept(full, x.shape[2:], pad_type, pad, output_shape, strides)
    if groups < 1 or x.shape[1] % groups or weight.shape[0] != x.shape[1] or min(sizes) < 1:
        raise ValueError(f"{groups} groups of {list(weight.shape)} for {list(x.shape)}")
    # An output_shape may reach past the last window.
    whole = [max(f, first + size) for f, first, size in zip(full, firsts, sizes, strict=True)]
    outputs = weight.shape[1]
    y = np.zeros(allowed((x.shape[0], groups * outputs, *whole)), np.float32)
    inputs = x.shape[1] // groups
    for group in range(groups):
        w = weight[group * inputs : (group + 1) * inputs]
        part = x[:, group * inputs : (group + 1) * inputs].reshape(x.shape[0], inputs, -1)
        target = y[:, group * outputs : (group + 1) * outputs]
        for position, index in _taps(weight.shape[2:], x.shape[2:], strides, dilations):
            product_ = w[(slice(None), slice(None), *position)].T @ part
            target[(slice(None), slice(None), *index)] += product_.reshape(
                x.shape[0], outputs, *x.shape[2:]
            )
    kept = tuple(slice(first, first + size) for first, size in zip(firsts, sizes, strict=True))
    y = y[(slice(None), slice(None), *kept)]
    if bias is not None:
        y += bias.reshape(-1, *[1] * n)
    return y


def _kept(
    full: Ints,
    inputs: Ints,
    pad_type: str,
    pad: Ints | None,
    output_shape: Ints | None,
    strides: Ints,
) -> tuple[list[int], list[int]]:
    """Return where the result begins in the full one, and its size, for each spatial axis."""
    n = len(full)
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * n or min(pad, default=0) < 0:
            raise ValueError(f"custom padding {pad} for {n} axes")
        firsts = list(pad[::2])
        sizes = [f - a - b for f, a, b in zip(full, pad[::2], pad[1::2], strict=True)]
    elif pad_type == "valid":
        firsts, sizes = [0] * n, list(full)
    elif pad_type in ("same", "same_lower"):
        sizes = [d * s for d, s in zip(inputs, strides, strict=True)]
        spare = [max(0, f - size) for f, size in zip(full, sizes, strict=True)]
        firsts = [s // 2 if pad_type == "same" else s - s // 2 for s in spare]
    else:
        raise ValueError(f"there is no padding {pad_type!r}")
    return firsts, list(output_shape[2:]) if output_shape else sizes
