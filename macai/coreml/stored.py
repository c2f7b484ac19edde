"""How a weight is stored compressed, in numpy alone, and what it stands for.

MIL's two forms: whole numbers with a scale for each block, and indices into tables.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

FLOAT_BYTES = {"fp16": 2, "fp32": 4}
# What Core ML has of whole numbers; the other widths are for indices alone.
INTEGER_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}


@dataclass(frozen=True, slots=True)
class Blocks:
    """scale * (data - offset), a scale for each block: constexpr_blockwise_shift_scale.

    Attributes:
        data: int8 or uint8 [rows, columns]; codes of fewer bits use a part of their range.
        dtype: "int4", "uint4", "int8" or "uint8": how the codes are stored.
        scale: float32 [rows / r, columns / c], a value for each block of r x c codes.
        offset: None; a float of each block; or whole numbers, which are stored like the codes.
    """

    data: np.ndarray
    dtype: str
    scale: np.ndarray
    offset: np.ndarray | None = None

    @property
    def has_whole_offsets(self) -> bool:
        """Whether the offsets are stored in the type of the codes."""
        return self.offset is not None and self.offset.dtype.kind in "iu"

    def size_bytes(self, mil_type: str = "fp16") -> int:
        """Return how much it takes in a package whose floats are of `mil_type`."""
        bits = INTEGER_BITS[self.dtype]
        size = _bytes(self.data.size, bits) + self.scale.size * FLOAT_BYTES[mil_type]
        if self.offset is None:
            return size
        if self.has_whole_offsets:
            return size + _bytes(self.offset.size, bits)
        return size + self.offset.size * FLOAT_BYTES[mil_type]

    @property
    def row_step(self) -> int:
        """How many rows have their scales together."""
        return 1 if len(self.scale) == 1 else len(self.data) // len(self.scale)

    def rows(self, begin: int, end: int) -> "Blocks":
        """Return some rows, from and to a multiple of `row_step`."""
        share = partial(_cut, begin=begin, end=end, rows=len(self.data))
        offset = None if self.offset is None else share(self.offset)
        return Blocks(share(self.data), self.dtype, share(self.scale), offset)

    def with_axes(self, count: int) -> "Blocks":
        """Return it with axes of size 1 behind: a matrix as a convolution's weight."""
        offset = None if self.offset is None else _wider(self.offset, count)
        return Blocks(_wider(self.data, count), self.dtype, _wider(self.scale, count), offset)

    def dense(self, mil_type: str = "fp16") -> np.ndarray:
        """Return the weight it stands for, float32 [rows, columns], with all roundings."""
        kind = np.float16 if mil_type == "fp16" else np.float32
        values = self.data.astype(np.float32)
        if self.offset is not None:
            offset = self.offset if self.has_whole_offsets else self.offset.astype(kind)
            values -= spread(offset.astype(np.float32), self.data.shape)
        values *= spread(self.scale.astype(kind).astype(np.float32), self.data.shape)
        return values.astype(kind).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Palette:
    """A table's entries at indices: constexpr_lut_to_dense.

    Attributes:
        indices: uint8 [rows, columns].
        bits: 1, 2, 3, 4, 6 or 8; indices are stored in as many.
        tables: float32 [rows / r, columns / c, 2^bits]: a table for each part of the weight.
        scale: None, or float32 [rows / r', columns / c'] that the entries are multiplied by.
    """

    indices: np.ndarray
    bits: int
    tables: np.ndarray
    scale: np.ndarray | None = None

    def size_bytes(self, mil_type: str = "fp16") -> int:
        """Return how much it takes in a package whose floats are of `mil_type`."""
        floats = self.tables.size + (0 if self.scale is None else self.scale.size)
        return _bytes(self.indices.size, self.bits) + floats * FLOAT_BYTES[mil_type]

    @property
    def row_step(self) -> int:
        """How many rows have their table together."""
        return 1 if len(self.tables) == 1 else len(self.indices) // len(self.tables)

    def rows(self, begin: int, end: int) -> "Palette":
        """Return some rows, from and to a multiple of `row_step`."""
        share = partial(_cut, begin=begin, end=end, rows=len(self.indices))
        scale = None if self.scale is None else share(self.scale)
        return Palette(share(self.indices), self.bits, share(self.tables), scale)

    def with_axes(self, count: int) -> "Palette":
        """Return it with axes of size 1 behind: a matrix as a convolution's weight."""
        scale = None if self.scale is None else _wider(self.scale, count)
        tables = np.expand_dims(self.tables, tuple(range(-1 - count, -1)))
        return Palette(_wider(self.indices, count), self.bits, tables, scale)

    def dense(self, mil_type: str = "fp16") -> np.ndarray:
        """Return the weight it stands for, float32 [rows, columns], with all roundings."""
        kind = np.float16 if mil_type == "fp16" else np.float32
        *parts, entries = self.tables.shape
        tables = self.tables.astype(kind).reshape(-1, entries)
        numbers = np.arange(math.prod(parts)).reshape(parts)
        values = tables[spread(numbers, self.indices.shape), self.indices]
        if self.scale is not None:
            values = values * spread(self.scale.astype(kind), self.indices.shape)
        return values.astype(np.float32)


Stored = Blocks | Palette


def spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat each of the n entries of an axis for its equal part of `shape`."""
    for axis, (count, size) in enumerate(zip(blocks.shape, shape, strict=True)):
        if count not in (1, size):
            blocks = np.repeat(blocks, size // count, axis)
    return np.broadcast_to(blocks, shape)


def _cut(part: np.ndarray, begin: int, end: int, rows: int) -> np.ndarray:
    """Return what of a part, whose entries may be for several rows each, some of the rows have."""
    if len(part) == 1:
        return part
    return part[begin * len(part) // rows : end * len(part) // rows]


def _wider(array: np.ndarray, count: int) -> np.ndarray:
    return array.reshape(*array.shape, *(1,) * count)


def _bytes(count: int, bits: int) -> int:
    return (count * bits + 7) // 8
