"""Elementwise work piece by piece: what is done to a piece stays in a core's cache."""

from collections.abc import Callable

import numpy as np

BLOCK = 1 << 15
"""Numbers in a piece."""


def in_blocks(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return an elementwise function of x, float32, of its shape.

    Passes of numpy over large arrays go at the speed of memory, each of them; and what they return
    on the way is as large as x, here as a piece.
    """
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    out = np.empty_like(flat)
    for begin in range(0, flat.size, BLOCK):
        out[begin : begin + BLOCK] = function(flat[begin : begin + BLOCK])
    return out.reshape(x.shape)
