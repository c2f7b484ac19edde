"""Decode the tensor types of GGUF to float32, and repack the affine ones for MLX.

A row of a quantised tensor is a run of blocks; a block holds its own scales and its values' bits.
Every decoder is exact: it gives the float32 numbers that llama.cpp computes with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Decoder = Callable[[np.ndarray], np.ndarray]
"""uint8 [N, bytes of a block] -> float32 [N, values of a block]"""


@dataclass(frozen=True, slots=True)
class TensorType:
    """One way to store numbers: `bytes` hold `size` of them, `decode` makes float32 of those."""

    size: int
    bytes: int
    decode: Decoder


TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""The names of GGUF's type numbers: also of those that cannot be decoded, to say so."""


def decode(rows: np.ndarray, type_name: str) -> np.ndarray:
    """Decode uint8 [R, bytes of a row] to float32 [R, values of a row].

    Damaged scales give infinities or NaN: the caller looks for those.
    """
    kind = TENSOR_TYPES[type_name]
    with np.errstate(over="ignore", invalid="ignore"):
        return kind.decode(rows.reshape(-1, kind.bytes)).reshape(len(rows), -1)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the float16 numbers at byte `at` of each block, as float32 [N, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _spread(packed: np.ndarray, shifts: tuple[int, ...], mask: int) -> np.ndarray:
    """uint8 [N, G, W] -> uint8 [N, G * len(shifts) * W]: the low bits of a group come first."""
    shift = np.array(shifts, np.uint8).reshape(1, 1, -1, 1)
    return ((packed[:, :, None, :] >> shift) & np.uint8(mask)).reshape(len(packed), -1)


def _nibbles(packed: np.ndarray, *, group: int) -> np.ndarray:
    """uint8 [N, B] -> uint8 [N, 2 * B]: `group` bytes' low halves, then their high halves."""
    return _spread(packed.reshape(len(packed), -1, group), (0, 4), 0x0F)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """uint8 [N, 4] -> uint8 [N, 32], each 0 or 16."""
    bits = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    return bits << np.uint8(4)


def _scaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Multiply float32 [N, V] by float32 [N, G], one scale for each V / G neighbours."""
    N, G = scales.shape
    return (values.reshape(N, G, -1) * scales[:, :, None]).reshape(N, -1)


def _offset(values: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Subtract float32 [N, G] from float32 [N, V], one number from each V / G neighbours."""
    N, G = mins.shape
    return (values.reshape(N, G, -1) - mins[:, :, None]).reshape(N, -1)


def _f32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f4")


def _f16(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    high = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32)
    return (high << np.uint32(16)).view(np.float32)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:], group=16).astype(np.float32) - 8) * _half(blocks, 0)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 4:], group=16).astype(np.float32)
    return q * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 6:], group=16) | _fifth_bits(blocks[:, 2:6])
    return (q.astype(np.float32) - 16) * _half(blocks, 0)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 8:], group=16) | _fifth_bits(blocks[:, 4:8])
    return q.astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    """16 groups of 16 values: a 4-bit scale and a 4-bit minimum each."""
    q = _spread(blocks[:, 16:80].reshape(-1, 2, 32), (0, 2, 4, 6), 3).astype(np.float32)
    scales = (blocks[:, :16] & np.uint8(0x0F)).astype(np.float32) * _half(blocks, 80)
    mins = (blocks[:, :16] >> np.uint8(4)).astype(np.float32) * _half(blocks, 82)
    return _offset(_scaled(q, scales), mins)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    """16 groups of 16 values: the third bits first, then two bits each, then 6-bit scales."""
    low = _spread(blocks[:, 32:96].reshape(-1, 2, 32), (0, 2, 4, 6), 3)
    high = _spread(blocks[:, :32].reshape(-1, 1, 32), tuple(range(8)), 1)
    q = low.astype(np.float32) - 4 * (high ^ np.uint8(1)).astype(np.float32)
    scale_low = _nibbles(blocks[:, 96:104], group=8)
    scale_high = _spread(blocks[:, 104:108].reshape(-1, 1, 4), (0, 2, 4, 6), 3)
    scales = (scale_low | (scale_high << np.uint8(4))).astype(np.float32) - 32
    return _scaled(q, scales * _half(blocks, 108))


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack uint8 [N, 12] to 8 scales and 8 minima of 6 bits, float32 [N, 8] each.

    The first four of either are the low 6 bits of bytes 0-3 and 4-7; of the last four, bytes 8-11
    hold the low bits and the two spare bits of bytes 0-7 the high ones.
    """
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    six, four, two = np.uint8(0x3F), np.uint8(0x0F), np.uint8(0x30)
    scales = [first & six, (last & four) | ((first >> np.uint8(2)) & two)]
    mins = [second & six, (last >> np.uint8(4)) | ((second >> np.uint8(2)) & two)]
    return np.hstack(scales).astype(np.float32), np.hstack(mins).astype(np.float32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """8 groups of 32 values: a 6-bit scale and a 6-bit minimum each."""
    scales, mins = _k_scales(blocks[:, 4:16])
    q = _nibbles(blocks[:, 16:], group=32).astype(np.float32)
    return _offset(_scaled(q, scales * _half(blocks, 0)), mins * _half(blocks, 2))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    """As Q4_K, with the fifth bits in bytes 16-47."""
    scales, mins = _k_scales(blocks[:, 4:16])
    high = _spread(blocks[:, 16:48].reshape(-1, 1, 32), tuple(range(8)), 1)
    q = (_nibbles(blocks[:, 48:], group=32) | (high << np.uint8(4))).astype(np.float32)
    return _offset(_scaled(q, scales * _half(blocks, 0)), mins * _half(blocks, 2))


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """16 groups of 16 values: four bits each, then two bits each, then 8-bit scales."""
    low = _nibbles(blocks[:, :128], group=64)
    high = _spread(blocks[:, 128:192].reshape(-1, 2, 32), (0, 2, 4, 6), 3)
    q = (low | (high << np.uint8(4))).astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(q, scales * _half(blocks, 208))


TENSOR_TYPES: dict[str, TensorType] = {
    "F32": TensorType(1, 4, _f32),
    "F16": TensorType(1, 2, _f16),
    "BF16": TensorType(1, 2, _bf16),
    "Q8_0": TensorType(32, 34, _q8_0),
    "Q4_0": TensorType(32, 18, _q4_0),
    "Q4_1": TensorType(32, 20, _q4_1),
    "Q5_0": TensorType(32, 22, _q5_0),
    "Q5_1": TensorType(32, 24, _q5_1),
    "Q2_K": TensorType(256, 84, _q2_k),
    "Q3_K": TensorType(256, 110, _q3_k),
    "Q4_K": TensorType(256, 144, _q4_k),
    "Q5_K": TensorType(256, 176, _q5_k),
    "Q6_K": TensorType(256, 210, _q6_k),
}
"""The types that can be read, by the names llama.cpp gives them."""
