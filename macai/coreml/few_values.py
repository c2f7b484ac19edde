"""A weight of few distinct values as a table and indices into it: nothing is lost by that.

Whoever wants a palette rounds the model's own weights to one, and the package finds it: then the
model and its package are the same, whatever was done to the weights in between.
"""

import numpy as np

from macai.coreml.stored import Palette

LEAST_ELEMENTS = 2048
_BITS = (1, 2, 4, 6, 8)  # of a table: those that Core ML has since iOS 16


def palette_of(array: np.ndarray) -> Palette | None:
    """Return float16 [rows, ...] as a palette, or None if it has more than 256 distinct values.

    Neither what is small nor what is a vector is one.
    """
    if (
        array.dtype != np.float16
        or array.size < LEAST_ELEMENTS
        or array.shape[0] in (1, array.size)
    ):
        return None
    # 0 and -0 count as two: a palette gives back each bit.
    codes = np.ascontiguousarray(array).view(np.uint16)
    if len(np.unique(codes.reshape(-1)[:LEAST_ELEMENTS])) > 256:
        return None
    seen = np.flatnonzero(np.bincount(codes.reshape(-1), minlength=1 << 16))
    if len(seen) > 256:
        return None
    bits = next(b for b in _BITS if len(seen) <= 2**b)
    place = np.zeros(1 << 16, np.uint8)
    place[seen] = np.arange(len(seen), dtype=np.uint8)
    table = np.zeros(2**bits, np.float16)
    table[: len(seen)] = seen.astype(np.uint16).view(np.float16)
    tables = table.astype(np.float32).reshape(*(1,) * array.ndim, -1)
    return Palette(place[codes], bits, tables)


def packed(palette: Palette) -> np.ndarray:
    """Return the indices as bits, uint8 [bytes]: the first in the lowest, across byte borders."""
    flat = palette.indices.reshape(-1, 1)
    return np.packbits(
        (flat >> np.arange(palette.bits, dtype=np.uint8)) & np.uint8(1), bitorder="little"
    )
