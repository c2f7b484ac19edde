"""Rounding that makes up for itself: each column's error is taken out of the columns after it.

What a layer's output loses is tr(E H E^T), where E is the error of its weight and H the second
moments of its inputs. Column by column in the order of the inputs, the weight is rounded, and what
is left of the others is moved to where that loss is least (Frantar et al., arXiv:2210.17323, after
Hassibi and Stork's optimal brain surgeon).
"""

from collections.abc import Callable

import numpy as np

from macai.coreml.palettize import nearest, palettize
from macai.coreml.rounding import Grid, best_grid, stored
from macai.coreml.stored import Blocks, Palette

_LAZY = 64  # columns after which the rest of the weight is brought up to date
DAMPING = 0.01  # of the mean of H's diagonal, added to it


def round_with_moments(
    weight: np.ndarray, moments: np.ndarray, *, bits: int, block: int, symmetric: bool
) -> Blocks:
    """Return a weight in blocks, rounded with error feedback.

    A block's grid is chosen when its turn comes, for what the columns before have made of it.

    Args:
        weight: float [rows, columns].
        moments: H: the mean or sum of x x^T over inputs x, float [columns, columns].
        bits: 4 or 8.
        block: Divides the columns.
        symmetric: Whether zero is the code 0; else each block has an offset.
    """
    rows, columns = weight.shape
    importance = _importance(moments)
    codes = np.empty((columns, rows), np.float32)
    grids: list[Grid] = []

    def column(place: int, left: np.ndarray) -> np.ndarray:
        if place % block == 0:
            grid = best_grid(
                left[:block].T[:, None],
                bits=bits,
                symmetric=symmetric,
                importance=importance[place : place + block],
            )
            grids.append(grid)
        codes[place] = grids[-1].codes(left[0][:, None])[:, 0]
        return grids[-1].values(codes[place][:, None])[:, 0]

    _feed_back(weight, moments, column, block)
    scale = np.concatenate([grid.scale for grid in grids], axis=1)
    zero = np.concatenate([grid.zero for grid in grids], axis=1)
    return stored(codes.T, scale, zero, bits=bits, symmetric=symmetric)


def palettize_with_moments(
    weight: np.ndarray, moments: np.ndarray, *, bits: int, group: int | None
) -> Palette:
    """Return a weight as indices into tables, chosen with error feedback.

    The tables are the best ones for the weight as it is, errors weighted by the diagonal of H.

    Args:
        weight: float [rows, columns].
        moments: H, as above.
        bits: 1, 2, 3, 4, 6 or 8.
        group: How many rows share a table; all if None.
    """
    rows, columns = weight.shape
    tables = palettize(weight, bits=bits, group=group, importance=_importance(moments)).tables[:, 0]
    indices = np.empty((columns, rows), np.uint8)
    each = np.arange(rows) // (group or rows)

    def column(place: int, left: np.ndarray) -> np.ndarray:
        indices[place] = nearest(left[0].reshape(len(tables), -1), tables).reshape(-1)
        return tables[each, indices[place]]

    _feed_back(weight, moments, column, 1)
    return Palette(np.ascontiguousarray(indices.T), bits, tables[:, None])


def _importance(moments: np.ndarray) -> np.ndarray:
    diagonal = np.diag(moments).astype(np.float64)
    return diagonal + DAMPING * diagonal.mean() + 1e-12


def _feed_back(
    weight: np.ndarray,
    moments: np.ndarray,
    column: Callable[[int, np.ndarray], np.ndarray],
    block: int,
) -> None:
    """Go through the columns.

    `column` is given a place and the columns that are left of its part, [columns, rows], the one at
    that place first; it returns what that one is rounded to.
    """
    factor = _factor(moments)
    left = np.ascontiguousarray(weight.T, dtype=np.float32)
    lazy = max(_LAZY // block, 1) * block
    for begin in range(0, len(left), lazy):
        end = min(begin + lazy, len(left))
        part, errors = left[begin:end], np.empty_like(left[begin:end])
        for place in range(begin, end):
            own = place - begin
            error = (part[own] - column(place, part[own:])) / factor[place, place]
            part[own + 1 :] -= factor[place, place + 1 : end, None] * error
            errors[own] = error
        left[end:] -= factor[begin:end, end:].T @ errors


def _factor(moments: np.ndarray) -> np.ndarray:
    """Return U, upper triangular, where U^T U is the inverse of the damped H; float32."""
    damped = moments.astype(np.float64)
    mean = np.diag(damped).mean()
    damped[np.diag_indices_from(damped)] += DAMPING * mean if mean > 0 else 1.0
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    return np.ascontiguousarray(lower.T.astype(np.float32))
