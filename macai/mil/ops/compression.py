"""Compressed weights: `constexpr_*`, and `quantize` and `dequantize`.

Computed in float32; what calls these rounds the result to its declared type.
"""

import math

import numpy as np

from macai.mil.dtypes import DTYPES, unpack
from macai.mil.registry import Array, Ints, Raw, op

F = np.float32
MAX_VECTOR = 64
"""Far more than any palette has; it bounds what one stored index can become."""


def spread(blocks: Array, shape: tuple[int, ...]) -> Array:
    """Repeat [n0, n1, ...] to `shape`: each of the n values of an axis for an equal part of it."""
    if blocks.ndim != len(shape):
        raise ValueError(f"blocks of shape {list(blocks.shape)} for data of {list(shape)}")
    for axis, (count, size) in enumerate(zip(blocks.shape, shape, strict=True)):
        if count == 0 or size % count:
            raise ValueError(f"{count} blocks along axis {axis} of {list(shape)}")
        if count not in (1, size):
            blocks = np.repeat(blocks, size // count, axis)
    return blocks


@op("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Raw, scale: Raw, offset: Raw | None = None) -> Array:
    """Scale · (data - offset); scale and offset have a value for each block of data."""
    values = data.astype(F)
    if offset is not None:
        values -= spread(offset.astype(F), data.shape)
    values *= spread(scale.astype(F), data.shape)
    return values


@op("constexpr_affine_dequantize")
def constexpr_affine_dequantize(
    quantized_data: Raw, zero_point: Raw, scale: Raw, axis: int
) -> Array:
    """Scale · (data - zero_point), either a scalar or a value for each index of `axis`."""
    return _affine(quantized_data, scale, zero_point, axis)


def _affine(data: Array, scale: Array, zero_point: Array | None, axis: int | None) -> Array:
    values = data.astype(F)
    if zero_point is not None:
        values -= _along(zero_point, data, axis)
    return values * _along(scale, data, axis)


def _along(values: Array, data: Array, axis: int | None) -> Array:
    """Return a scalar, or a value for each index of an axis of `data`, ready to be broadcast."""
    if values.ndim == 0 or axis is None:
        return values.astype(F).reshape(())
    shape = [1] * data.ndim
    shape[axis] = data.shape[axis]
    return values.astype(F).reshape(shape)


@op("dequantize")
def dequantize(
    input: Raw, scale: Raw, zero_point: Raw | None = None, axis: int | None = None
) -> Array:
    return _affine(input, scale, zero_point, axis)


@op("quantize")
def quantize(
    input: Array,
    scale: Raw,
    output_dtype: str,
    zero_point: Raw | None = None,
    axis: int | None = None,
) -> Array:
    """Round input / scale to the nearest integer, halves to even, add zero_point, and clip."""
    values = np.round(input / _along(scale, input, axis))
    if zero_point is not None:
        values += _along(zero_point, input, axis)
    info = np.iinfo(output_dtype)
    return np.clip(values, info.min, info.max).astype(output_dtype)


@op("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: Raw, lut: Raw, shape: Ints | None = None, vector_axis: int | None = None
) -> Array:
    """Look every index up.

    iOS 16: indices are bits, packed; lut [2^bits]; `shape` is the result's. iOS 18: lut has a table
    [2^bits, vector] for each block of indices; a vector lies along `vector_axis`.
    """
    if shape is not None:
        return lut.reshape(-1)[_packed_indices(indices, lut.size, shape)]
    return _looked_up(indices, lut, vector_axis)


def _packed_indices(packed: Array, palette: int, shape: tuple[int, ...]) -> Array:
    bits, count = max(palette - 1, 1).bit_length(), math.prod(shape)
    name = f"uint{bits}"
    if name not in DTYPES or bits > 8 or not 0 <= count * bits <= packed.size * 8:
        raise ValueError(f"{count} indices of {bits} bits in {packed.size} bytes")
    return unpack(packed.reshape(-1), DTYPES[name], count).reshape(shape)


def _looked_up(indices: Array, lut: Array, vector_axis: int | None) -> Array:
    *blocks, palette, vector = lut.shape
    if vector > MAX_VECTOR:
        raise ValueError(f"a palette of vectors of {vector}")
    if indices.size and int(indices.max()) >= palette:
        raise ValueError(f"index {int(indices.max())} in a palette of {palette}")
    tables = np.arange(int(np.prod(blocks))).reshape(blocks)
    places = spread(tables, indices.shape) * palette + indices
    found = lut.reshape(-1, vector)[places]
    if vector == 1:
        return found[..., 0]
    if vector_axis is None:
        raise ValueError(f"vectors of {vector} without a vector_axis")
    axis = vector_axis % indices.ndim
    shape = list(indices.shape)
    shape[axis] *= vector
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


@op("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(nonzero_data: Raw, mask: Raw, shape: Ints | None = None) -> Array:
    """Put the values where the mask is 1, zeros elsewhere; iOS 16 packs the mask's bits."""
    if shape is not None:
        count = math.prod(shape)
        if not 0 <= count <= mask.size * 8:
            raise ValueError(f"a mask of {mask.size} bytes for {count} values")
        mask = unpack(mask.reshape(-1), DTYPES["uint1"], count).reshape(shape)
    return _dense(nonzero_data, mask)


def _dense(nonzero: Array, mask: Array) -> Array:
    is_set = mask.astype(bool)
    count = int(np.count_nonzero(is_set))
    if nonzero.shape != (count,):
        raise ValueError(f"{nonzero.size} values for a mask with {count} ones")
    dense = np.zeros(mask.shape, nonzero.dtype)
    dense[is_set] = nonzero
    return dense


@op("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    indices_mask: Raw, indices_nonzero_data: Raw, lut: Raw, vector_axis: int | None = None
) -> tuple[Array, Array]:
    """Look up the indices that are there; returns the mask, widened by vectors, and the values."""
    values = _looked_up(_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = np.repeat(mask, lut.shape[-1], vector_axis)
    return mask, values[mask.astype(bool)]


@op("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Raw, nonzero_data: Raw, scale: Raw, offset: Raw | None = None
) -> tuple[Array, Array]:
    """As constexpr_blockwise_shift_scale, for the values that are there; returns the mask too."""
    values = constexpr_blockwise_shift_scale(_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, values[data_mask.astype(bool)]


@op("constexpr_cast")
def constexpr_cast(source_val: Raw, output_dtype: str) -> Array:
    return source_val
