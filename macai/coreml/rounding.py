"""Whole numbers with a scale for each block of a row, chosen for the least squared error.

All arrays are [rows, columns] of a weight [out, in]; a block is `block` neighbours of one row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from macai.coreml.stored import Blocks

# By how much the range of codes is narrower than the block's, as divisors of its extremes.
_SYMMETRIC = np.arange(5.5, 9.01, 0.5)
_NARROWER = (1.0, 0.94, 0.88, 0.8, 0.7)
_CHUNK = 1 << 22  # elements worked on at once


@dataclass(frozen=True, slots=True)
class Grid:
    """What codes of some blocks stand for: scale (code - zero).

    Attributes:
        scale: float32 [rows, blocks]; as float16 has it.
        zero: float32 [rows, blocks], whole.
        low: The least code.
        high: The greatest.
    """

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int

    def codes(self, weight: np.ndarray) -> np.ndarray:
        """Return the nearest codes, float32, of a weight [rows, blocks] or [rows, blocks, n]."""
        deep = weight.ndim > self.scale.ndim
        scale, zero = (a[..., None] if deep else a for a in (self.scale, self.zero))
        divided = np.divide(weight, scale, out=np.zeros_like(weight), where=scale != 0)
        return np.clip(np.rint(divided) + zero, self.low, self.high)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Return what codes stand for."""
        deep = codes.ndim > self.scale.ndim
        scale, zero = (a[..., None] if deep else a for a in (self.scale, self.zero))
        return scale * (codes - zero)


def round_to_blocks(
    weight: np.ndarray,
    *,
    bits: int,
    block: int,
    symmetric: bool,
    importance: np.ndarray | None = None,
) -> Blocks:
    """Return a weight rounded to the nearest codes of the best grid of each block.

    Args:
        weight: float [rows, columns].
        bits: 4 or 8.
        block: Divides the columns.
        symmetric: Whether zero is the code 0; else each block has an offset.
        importance: How much an error of a column counts, float [columns].
    """
    rows, columns = weight.shape
    data = np.empty((rows, columns), np.int8 if symmetric else np.uint8)
    scale = np.empty((rows, columns // block), np.float32)
    zero = np.empty_like(scale)
    step = max(1, _CHUNK // columns)
    for begin in range(0, rows, step):
        part = np.s_[begin : begin + step]
        blocks = weight[part].astype(np.float32).reshape(-1, columns // block, block)
        grid = best_grid(blocks, bits=bits, symmetric=symmetric, importance=importance)
        data[part] = grid.codes(blocks).reshape(-1, columns)
        scale[part], zero[part] = grid.scale, grid.zero
    return stored(data, scale, zero, bits=bits, symmetric=symmetric)


def stored(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, *, bits: int, symmetric: bool
) -> Blocks:
    """Return codes [rows, columns] with scales and zeros [rows, blocks] as they are stored."""
    kind = np.int8 if symmetric else np.uint8
    offset = None if symmetric else zero.astype(np.uint8)
    return Blocks(codes.astype(kind), f"{'' if symmetric else 'u'}int{bits}", scale, offset)


def best_grid(
    blocks: np.ndarray, *, bits: int, symmetric: bool, importance: np.ndarray | None = None
) -> Grid:
    """Return the grid with the least squared error among some, for blocks [rows, blocks, n]."""
    weights = None
    if importance is not None:
        weights = importance.astype(np.float32).reshape(1, blocks.shape[1], -1)
    best: Grid | None = None
    least = np.full(blocks.shape[:2], np.inf, np.float32)
    for first in _grids(blocks, bits, symmetric):
        grid = _refitted(first, blocks, weights)
        error = (grid.values(grid.codes(blocks)) - blocks) ** 2
        total = (error if weights is None else error * weights).sum(-1)
        better = total < least
        least = np.where(better, total, least)
        best = grid if best is None else _either(better, grid, best)
    assert best is not None
    return best


def _either(better: np.ndarray, one: Grid, other: Grid) -> Grid:
    scale = np.where(better, one.scale, other.scale)
    return Grid(scale, np.where(better, one.zero, other.zero), one.low, one.high)


def _grids(blocks: np.ndarray, bits: int, symmetric: bool) -> Iterator[Grid]:
    levels = 2**bits
    if symmetric:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
        zero = np.zeros_like(largest)
        if bits == 8:  # steps are so fine that clipping never pays
            yield Grid(_half(np.abs(largest) / 127), zero, -127, 127)
            return
        for divisor in _SYMMETRIC:  # there is one more code below zero than above
            for sign in (-1, 1):
                yield Grid(_half(sign * largest / divisor), zero, -8, 7)
        return
    top = np.maximum(blocks.max(-1), 0)
    bottom = np.minimum(blocks.min(-1), 0)
    for above in _NARROWER:
        for below in _NARROWER:
            scale = _half((top * above - bottom * below) / (levels - 1))
            ratio = np.divide(-bottom * below, scale, out=np.zeros_like(scale), where=scale > 0)
            yield Grid(scale, np.clip(np.rint(ratio), 0, levels - 1), 0, levels - 1)


def _refitted(grid: Grid, blocks: np.ndarray, weights: np.ndarray | None) -> Grid:
    """Return the grid with the scale that is best for the codes it gives."""
    steps = grid.codes(blocks) - grid.zero[..., None]
    weighted = steps if weights is None else steps * weights
    square = (weighted * steps).sum(-1)
    fitted = np.divide(
        (weighted * blocks).sum(-1), square, out=np.zeros_like(square), where=square > 0
    )
    return Grid(_half(fitted), grid.zero, grid.low, grid.high)


def _half(scale: np.ndarray) -> np.ndarray:
    return scale.astype(np.float16).astype(np.float32)
