"""MIL's data types: their names, their bits, and how numpy holds them.

Floats are computed in float32 whatever their declared type; see `compute_dtype`.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One data type.

    Attributes:
        name: As in MIL's text form.
        bits: What one value takes in a file; 0 where it has no fixed size.
        storage: The numpy type of a decoded value; sub-byte types have a byte for each value.
        blob: Its number in a weight file, None where it cannot be in one.
    """

    name: str
    bits: int
    storage: np.dtype
    blob: int | None = None

    @property
    def is_float(self) -> bool:
        return self.storage.kind == "f"


PROTO_DTYPES = {
    1: DType("bool", 8, np.dtype(np.bool_)),
    2: DType("string", 0, np.dtype(object)),
    10: DType("fp16", 16, np.dtype("<f2"), 1),
    11: DType("fp32", 32, np.dtype("<f4"), 2),
    12: DType("fp64", 64, np.dtype("<f8")),
    21: DType("int8", 8, np.dtype("i1"), 4),
    22: DType("int16", 16, np.dtype("<i2"), 6),
    23: DType("int32", 32, np.dtype("<i4"), 14),
    24: DType("int64", 64, np.dtype("<i8")),
    25: DType("int4", 4, np.dtype("i1"), 8),
    31: DType("uint8", 8, np.dtype("u1"), 3),
    32: DType("uint16", 16, np.dtype("<u2"), 7),
    33: DType("uint32", 32, np.dtype("<u4"), 15),
    34: DType("uint64", 64, np.dtype("<u8")),
    35: DType("uint4", 4, np.dtype("u1"), 11),
    36: DType("uint2", 2, np.dtype("u1"), 10),
    37: DType("uint1", 1, np.dtype("u1"), 9),
    38: DType("uint6", 6, np.dtype("u1"), 13),
    39: DType("uint3", 3, np.dtype("u1"), 12),
}
"""By the number of MIL.proto's DataType. bf16 and the fp8 types are not run."""

DTYPES = {dtype.name: dtype for dtype in PROTO_DTYPES.values()}


def compute_dtype(dtype: DType) -> np.dtype:
    """Return the numpy type that values of `dtype` have during a run."""
    return np.dtype(np.float32) if dtype.is_float else dtype.storage


def packed_bytes(dtype: DType, count: int) -> int:
    """Return how many bytes `count` values take in a file."""
    return -(-dtype.bits * count // 8)


def unpack(data: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    """Decode uint8 [packed_bytes(dtype, count)] to `count` values: a view, unless sub-byte.

    Sub-byte values follow one another from the lowest bit up, across byte borders.
    """
    if dtype.bits >= 8:
        return data.view(dtype.storage)
    values = _unpacked(data, dtype.bits)[:count]
    if dtype.storage.kind == "i":
        sign = np.uint8(1 << (dtype.bits - 1))
        return (values ^ sign).astype(np.int8) - np.int8(sign)
    return values


def _unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Return uint8 values of `bits` bits each, at the end some of the last bytes' spare bits."""
    mask = np.uint8((1 << bits) - 1)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((data[:, None] >> shifts) & mask).reshape(-1)
    # Three bytes hold a whole number of values of 3 or 6 bits.
    groups = np.pad(data, (0, -len(data) % 3)).reshape(-1, 3).astype(np.uint32)
    words = groups @ np.array([1, 1 << 8, 1 << 16], np.uint32)
    shifts = np.arange(0, 24, bits, dtype=np.uint32)
    return ((words[:, None] >> shifts).astype(np.uint8) & mask).reshape(-1)
