"""Whole numbers with a scale for each block of a row, chosen for the least squared error.

All arrays are [rows, columns] of a weight [out, in]; a block is `block` neighbours of one row. An
`offset` is "none": zero is the code 0; "whole": each block has the code that zero is, stored as
codes are; or "float16": any number, so that a block's codes need not reach zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from macai.coreml.stored import Blocks

# By how much the range of codes is narrower than the block's, as divisors of its extremes.
_SYMMETRIC = np.arange(5.5, 9.01, 0.5)
_NARROWER = (1.0, 0.94, 0.88, 0.8, 0.7)
_SPANNED = (15, 14, 13)  # by what others have rounded: they often leave a code at the end unused
_FARTHEST = 2.0**11  # steps from zero to a block, where float16 has whole numbers only
EXACT = 1e-6  # of the squared weight: what rounding a scale and an offset to float16 loses
_CHUNK = 1 << 22  # elements worked on at once


@dataclass(frozen=True, slots=True)
class Grid:
    """What codes of some blocks stand for: scale (code - zero).

    Attributes:
        scale: float32 [rows, blocks]; as float16 has it.
        zero: float32 [rows, blocks]; whole, or as float16 has it.
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
        return np.clip(np.rint(divided + zero), self.low, self.high)

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
    offset: str,
    importance: np.ndarray | None = None,
) -> Blocks:
    """Return a weight rounded to the nearest codes of the best grid of each block.

    Args:
        weight: float [rows, columns].
        bits: 4 or 8.
        block: Divides the columns.
        offset: See above.
        importance: How much an error of a column counts, float [columns].
    """
    rows, columns = weight.shape
    data = np.empty((rows, columns), np.int8 if offset == "none" else np.uint8)
    scale = np.empty((rows, columns // block), np.float32)
    zero = np.empty_like(scale)
    step = max(1, _CHUNK // columns)
    for begin in range(0, rows, step):
        part = np.s_[begin : begin + step]
        blocks = weight[part].astype(np.float32).reshape(-1, columns // block, block)
        grid = best_grid(blocks, bits=bits, offset=offset, importance=importance)
        data[part] = grid.codes(blocks).reshape(-1, columns)
        scale[part], zero[part] = grid.scale, grid.zero
    return stored(data, scale, zero, bits=bits, offset=offset)


def stored(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, *, bits: int, offset: str
) -> Blocks:
    """Return codes [rows, columns] with scales and zeros [rows, blocks] as they are stored."""
    if offset == "none":
        return Blocks(codes.astype(np.int8), f"int{bits}", scale)
    zero = zero.astype(np.uint8) if offset == "whole" else zero
    return Blocks(codes.astype(np.uint8), f"uint{bits}", scale, zero)


def best_grid(
    blocks: np.ndarray, *, bits: int, offset: str, importance: np.ndarray | None = None
) -> Grid:
    """Return the grid with the least squared error among some, for blocks [rows, blocks, n]."""
    weights = np.ones((1, *blocks.shape[1:]), np.float32)
    if importance is not None:  # of which the mean may be far from one
        weights *= (importance / importance.mean()).astype(np.float32).reshape(weights.shape)
    fitted = _moved if offset == "float16" else _scaled
    best: Grid | None = None
    least = np.full(blocks.shape[:2], np.inf, np.float32)
    enough = EXACT * (weights * blocks * blocks).sum(-1)
    for first in _grids(blocks, bits, offset):
        grid = fitted(first, blocks, weights)
        total = (weights * (grid.values(grid.codes(blocks)) - blocks) ** 2).sum(-1)
        better = total < least
        least = np.where(better, total, least)
        best = grid if best is None else _either(better, grid, best)
        if (least <= enough).all():  # as it was stored before
            break
    assert best is not None
    return best


def _either(better: np.ndarray, one: Grid, other: Grid) -> Grid:
    scale = np.where(better, one.scale, other.scale)
    return Grid(scale, np.where(better, one.zero, other.zero), one.low, one.high)


def _grids(blocks: np.ndarray, bits: int, offset: str) -> Iterator[Grid]:
    if offset == "none":
        yield from _symmetric(blocks, bits)
        return
    top, bottom, high = blocks.max(-1), blocks.min(-1), 2**bits - 1
    if offset == "float16":
        for steps in _SPANNED:
            yield _from(bottom, (top - bottom) / steps, high)
    middle = (top + bottom) / 2 if offset == "float16" else np.zeros_like(top)
    top, bottom = np.maximum(top - middle, 0), np.minimum(bottom - middle, 0)
    for above in _NARROWER:
        for below in _NARROWER:
            scale = _half((top * above - bottom * below) / high)
            if offset == "float16":
                yield _from(middle + bottom * below, scale, high)
                continue
            ratio = np.divide(-bottom * below, scale, out=np.zeros_like(scale), where=scale > 0)
            yield Grid(scale, np.clip(np.rint(ratio), 0, high), 0, high)


def _symmetric(blocks: np.ndarray, bits: int) -> Iterator[Grid]:
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    zero = np.zeros_like(largest)
    if bits == 8:  # steps are so fine that clipping never pays
        yield Grid(_half(np.abs(largest) / 127), zero, -127, 127)
        return
    for divisor in _SYMMETRIC:  # there is one more code below zero than above
        for sign in (-1, 1):
            yield Grid(_half(sign * largest / divisor), zero, -8, 7)


def _from(bottom: np.ndarray, scale: np.ndarray, high: int) -> Grid:
    """Return the grid whose code 0 stands for `bottom`."""
    scale = _half(np.maximum(np.abs(scale), np.abs(bottom) / _FARTHEST))
    ratio = np.divide(-bottom, scale, out=np.zeros_like(scale), where=scale > 0)
    return Grid(scale, _half(ratio), 0, high)


def _scaled(grid: Grid, blocks: np.ndarray, weights: np.ndarray) -> Grid:
    """Return the grid with the scale that is best for the codes it gives."""
    steps = grid.codes(blocks) - grid.zero[..., None]
    square = (weights * steps * steps).sum(-1)
    product = (weights * steps * blocks).sum(-1)
    scale = np.divide(product, square, out=np.zeros_like(square), where=square > 0)
    return Grid(_half(scale), grid.zero, grid.low, grid.high)


def _moved(grid: Grid, blocks: np.ndarray, weights: np.ndarray) -> Grid:
    """Return the grid with the scale and the offset that are best for the codes it gives."""
    codes, total = grid.codes(blocks), weights.sum(-1)
    code, value = (weights * codes).sum(-1) / total, (weights * blocks).sum(-1) / total
    steps = codes - code[..., None]
    square = (weights * steps * steps).sum(-1)
    product = (weights * steps * blocks).sum(-1)
    scale = np.divide(product, square, out=grid.scale.copy(), where=square > 0)
    return _from(value - scale * code, scale, grid.high)


def _half(scale: np.ndarray) -> np.ndarray:
    return scale.astype(np.float16).astype(np.float32)
