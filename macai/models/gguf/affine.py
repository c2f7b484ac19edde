"""Repack Q4_0, Q4_1 and Q8_0 rows as MLX's affine quantisation, without changing a value.

MLX computes `scale * q + bias` with unsigned q over groups of 32. Q4_1 is that already; Q4_0 is it
with bias -8 * scale, and Q8_0, shifted to 0..255, with bias -128 * scale. A product with a power of
2 is exact in float16 unless it overflows; then scales and biases are float32. Only the sign of a
zero may differ: 0 * -scale is -0 in a GGUF file and +0 in MLX.
"""

import numpy as np

from macai.models.gguf.blocks import TENSOR_TYPES

GROUP_SIZE = 32
BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""The types that can be repacked, and MLX's bits for each."""

ZERO_POINTS = {"Q4_0": 8, "Q8_0": 128}


def packed_weight(rows: np.ndarray, type_name: str) -> np.ndarray:
    """uint8 [R, bytes of a row] -> uint32 [R, values of a row * bits / 32]."""
    blocks = _blocks(rows, type_name)
    if type_name == "Q8_0":
        packed = blocks[:, :, 2:] ^ np.uint8(0x80)  # int8 plus 128, as uint8
    else:
        halves = blocks[:, :, -16:]
        low, high = halves & np.uint8(0x0F), halves >> np.uint8(4)
        values = np.concatenate([low, high], axis=2)
        packed = values[:, :, ::2] | (values[:, :, 1::2] << np.uint8(4))
    return np.ascontiguousarray(packed).reshape(len(rows), -1).view("<u4")


def scales(rows: np.ndarray, type_name: str) -> np.ndarray:
    """uint8 [R, bytes of a row] -> float16 [R, groups of a row]."""
    return _half(_blocks(rows, type_name), 0)


def biases(rows: np.ndarray, type_name: str) -> np.ndarray:
    """uint8 [R, bytes of a row] -> float32 [R, groups of a row]."""
    if type_name == "Q4_1":
        return _half(_blocks(rows, type_name), 2).astype(np.float32)
    return scales(rows, type_name).astype(np.float32) * -ZERO_POINTS[type_name]


def fits_float16(rows: np.ndarray, type_name: str) -> bool:
    """Whether every bias of these rows is a float16 number."""
    if type_name == "Q4_1":
        return True
    largest = float(np.abs(scales(rows, type_name)).max())
    return largest * ZERO_POINTS[type_name] <= float(np.finfo(np.float16).max)


def _blocks(rows: np.ndarray, type_name: str) -> np.ndarray:
    return rows.reshape(len(rows), -1, TENSOR_TYPES[type_name].bytes)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[:, :, 0]
