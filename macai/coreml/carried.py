"""Weights that MLX quantised, as MIL stores them: the same numbers, nothing quantised anew.

MLX packs codes least significant bit first into uint32 words; codes of 3, 5 and 6 bits straddle
words. Its modes: affine (scale q + bias), and the microscaling formats of floats of 4 and 8 bits
that share a scale (OCP Microscaling Formats v1.0: E2M1, E4M3, E8M0).
"""

import numpy as np

from macai.coreml.stored import Blocks, Palette

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
# Bits of a value, and whether a scale is a power of two (E8M0) or a float of 8 bits (E4M3).
FLOAT_MODES = {"mxfp4": (4, True), "mxfp8": (8, True), "nvfp4": (4, False)}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [rows, n * bits / 32] -> uint8 [rows, n]."""
    rows = words.shape[0]
    octets = np.ascontiguousarray(words, dtype="<u4").view(np.uint8).reshape(-1, bits)
    eight = np.zeros(len(octets), dtype=np.uint64)  # eight codes are `bits` bytes
    for place in range(bits):
        eight |= octets[:, place].astype(np.uint64) << np.uint64(8 * place)
    codes = np.empty((len(octets), 8), dtype=np.uint8)
    for place in range(8):
        codes[:, place] = (eight >> np.uint64(bits * place)) & np.uint64(2**bits - 1)
    return codes.reshape(rows, -1)


def affine(
    words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, mil_type: str
) -> Blocks:
    """Return scale q + bias as scale (q - offset), where offset = -bias / scale.

    Args:
        words: uint32 [rows, columns * bits / 32].
        scales: [rows, groups], of any float type.
        biases: Likewise.
        bits: Of a code.
        mil_type: The floats of the program.
    """
    codes = unpack(words, bits)
    scales, biases = scales.astype(np.float64), biases.astype(np.float64)
    scales, biases, codes = _without_flat_groups(codes, scales, biases, mil_type)
    divisor = np.where(scales == 0, 1, scales)
    return Blocks(
        data=codes,
        dtype="uint4" if bits <= 4 else "uint8",
        scale=scales.astype(np.float32),
        offset=_offsets(-biases / divisor, 4 if bits <= 4 else 8, mil_type),
    )


def _without_flat_groups(
    codes: np.ndarray, scales: np.ndarray, biases: np.ndarray, mil_type: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give groups whose steps are lost beside their bias steps that can be seen.

    Their offset would be infinite, or beyond float16. All of such a group's values are within a
    few roundings of each other, so the codes of the new steps differ from them by less than one.
    """
    limit = 2.0**11 if mil_type == "fp16" else 2.0**24
    flat = np.abs(biases) > limit * np.abs(scales)
    if not flat.any():
        return scales, biases, codes
    steps = np.abs(biases) / limit * np.where(scales < 0, -1, 1)
    groups = codes.reshape(*scales.shape, -1).astype(np.float64)
    ratio = np.divide(scales, steps, out=np.zeros_like(scales), where=flat)
    groups = np.where(flat[..., None], np.rint(groups * ratio[..., None]), groups)
    return np.where(flat, steps, scales), biases, groups.astype(np.uint8).reshape(codes.shape)


def _offsets(offsets: np.ndarray, bits: int, mil_type: str) -> np.ndarray:
    """Offsets in the type of the codes if that rounds them no more than MLX has rounded its own.

    MLX chooses groups so that zero is a code, so that an offset is a whole number but for the
    rounding of scale and bias to the type they are kept in: 2^-11 each for float16. Whole offsets
    take a quarter of the room, and are what coremltools itself writes.
    """
    whole = np.rint(offsets)
    tolerance = 2.0**-10 if mil_type == "fp16" else 2.0**-22
    near = np.abs(offsets - whole) <= tolerance * np.abs(offsets)
    if near.all() and whole.min() >= 0 and whole.max() < 2**bits:
        return whole.astype(np.uint8)
    return offsets.astype(np.float32)


def microscaled(words: np.ndarray, scales: np.ndarray, mode: str) -> Palette:
    """Return floats of 4 or 8 bits as a table of their values, and the scales of their groups.

    Args:
        words: uint32 [rows, columns * bits / 32].
        scales: uint8 [rows, groups].
        mode: One of FLOAT_MODES.
    """
    bits, powers = FLOAT_MODES[mode]
    table = np.array([*_E2M1, *(-v for v in _E2M1)]) if bits == 4 else _e4m3(np.arange(256))
    factors = 2.0 ** (scales.astype(np.float64) - 127) if powers else _e4m3(scales)
    return Palette(
        indices=unpack(words, bits),
        bits=bits,
        tables=table.astype(np.float32)[None, None],
        scale=factors.astype(np.float32),
    )


def _e4m3(codes: np.ndarray) -> np.ndarray:
    """Values of floats with 4 bits of exponent and 3 of mantissa; NaN's two codes are 0 here."""
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (8.0 + mantissa) * 2.0 ** (exponent.astype(np.float64) - 10)
    values = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    values = np.where((codes & 127) == 127, 0, values)
    return np.where(codes & 128, -values, values)
