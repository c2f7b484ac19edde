"""Rounding that makes up for itself: each column's error is taken out of the columns after it.

What a layer's output loses is tr(E H E^T), where E is the error of its weight and H the second
moments of its inputs. Column by column, the weight is rounded, and what is left of the others is
moved to where that loss is least (Frantar et al., arXiv:2210.17323, after Hassibi and Stork's
optimal brain surgeon). With U^T U = H^-1, U upper triangular, the loss is the sum over columns of
the squares of what each is rounded by, divided by U_ii^2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from macai.coreml.palettize import nearest, palettize, palettize_rows
from macai.coreml.rounding import Grid, best_grid, stored
from macai.coreml.stored import Blocks, Palette

_LAZY = 64  # columns after which the rest of the weight is brought up to date
DAMPING = 0.1
"""Of the mean of H's diagonal, added to it. The paper's 0.01 is for 30 times as many tokens: with
some thousands, all alike, SmolLM2 in affine4-64 was at 12.8 % more perplexity; here at 10.5."""


@dataclass(frozen=True)
class Inputs:
    """What a matrix is multiplied with.

    Attributes:
        moments: H: the mean of x x^T over inputs x, float [columns, columns].
        wanted: The mean of y x^T, where y is what the model as it was has for x; None if that is
            x, as for a matrix that comes before all rounding.
    """

    moments: np.ndarray
    wanted: np.ndarray | None = None

    @cached_property
    def factor(self) -> np.ndarray:
        """U, upper triangular, float32, where U^T U is the inverse of the damped H."""
        damped = self.moments.astype(np.float64)
        mean = np.diag(damped).mean()
        damped[np.diag_indices_from(damped)] += DAMPING * mean if mean > 0 else 1.0
        lower = np.linalg.cholesky(np.linalg.inv(damped))
        return np.ascontiguousarray(lower.T.astype(np.float32))

    @cached_property
    def importance(self) -> np.ndarray:
        """How much what a column is rounded by counts, float64 [columns]."""
        return 1 / np.square(np.diag(self.factor), dtype=np.float64)

    def importance_for(self, moments: np.ndarray) -> np.ndarray:
        """How much that counts for other inputs than those it was fed back for, float64 [columns].

        Args:
            moments: Of the other inputs, [columns, columns].
        """
        left = np.einsum("ij,ij->i", self.factor @ moments, self.factor, dtype=np.float64)
        return left * self.importance

    def target(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight that gives of x what `weight` gives of y, as nearly as one can.

        The least squares of both, damped towards the weight itself (Li et al., arXiv:2504.02692).
        """
        if self.wanted is None:
            return weight
        moved = weight @ (self.wanted - self.moments).astype(np.float32)
        return weight + (moved @ self.factor.T) @ self.factor


def round_with_inputs(
    weight: np.ndarray, inputs: Inputs, *, bits: int, block: int, offset: str
) -> Blocks:
    """Return a weight in blocks, rounded with error feedback.

    A block's grid is chosen when its turn comes, for what the columns before have made of it.

    Args:
        weight: float [rows, columns].
        inputs: What it is multiplied with.
        bits: 4 or 8.
        block: Divides the columns.
        offset: See rounding.py.
    """
    rows, columns = weight.shape
    codes = np.empty((columns, rows), np.float32)
    grids: list[Grid] = []

    def column(place: int, left: np.ndarray) -> np.ndarray:
        if place % block == 0:
            grid = best_grid(
                left[:block].T[:, None],
                bits=bits,
                offset=offset,
                importance=inputs.importance[place : place + block],
            )
            grids.append(grid)
        codes[place] = grids[-1].codes(left[0][:, None])[:, 0]
        return grids[-1].values(codes[place][:, None])[:, 0]

    _feed_back(weight, inputs.factor, column, block)
    scale = np.concatenate([grid.scale for grid in grids], axis=1)
    zero = np.concatenate([grid.zero for grid in grids], axis=1)
    return stored(codes.T, scale, zero, bits=bits, offset=offset)


def palettize_with_inputs(
    weight: np.ndarray, inputs: Inputs, *, bits: int, group: int | None
) -> Palette:
    """Return a weight as indices into tables, chosen with error feedback.

    Args:
        weight: float [rows, columns].
        inputs: What it is multiplied with.
        bits: 1, 2, 3, 4, 6 or 8.
        group: How many rows share a table; all if None.
    """
    first = palettize(weight, bits=bits, group=group, importance=inputs.importance)
    return _chosen_again(weight, inputs, first)


def palettize_rows_with_inputs(weight: np.ndarray, inputs: Inputs, *, bits: int) -> Palette:
    """Return a weight as indices into one table, with a scale for each row: as above."""
    first = palettize_rows(weight, bits=bits, importance=inputs.importance)
    found = _chosen_again(weight, inputs, first)
    assert found.scale is not None
    entries = Palette(found.indices, bits, found.tables).dense()
    moved = entries @ inputs.moments
    square = np.einsum("ij,ij->i", moved, entries, dtype=np.float64)
    product = np.einsum("ij,ij->i", moved, weight, dtype=np.float64)
    scale = np.divide(product, square, out=found.scale[:, 0].astype(np.float64), where=square > 0)
    return Palette(found.indices, bits, found.tables, scale.astype(np.float32)[:, None])


def _chosen_again(weight: np.ndarray, inputs: Inputs, first: Palette) -> Palette:
    """Return a palette with the tables and scales of `first`, its indices with error feedback."""
    rows, columns = weight.shape
    tables = first.tables[:, 0].astype(np.float16).astype(np.float32)
    scale = np.ones(rows, np.float32)
    if first.scale is not None:
        scale = first.scale[:, 0].astype(np.float16).astype(np.float32)
    divisor = np.where(scale == 0, 1, scale)
    indices = np.empty((columns, rows), np.uint8)
    each = np.arange(rows) // (rows // len(tables))

    def column(place: int, left: np.ndarray) -> np.ndarray:
        normal = left[0] / divisor
        indices[place] = nearest(normal.reshape(len(tables), -1), tables).reshape(-1)
        return scale * tables[each, indices[place]]

    _feed_back(weight, inputs.factor, column, 1)
    return Palette(np.ascontiguousarray(indices.T), first.bits, tables[:, None], first.scale)


def _feed_back(
    weight: np.ndarray,
    factor: np.ndarray,
    column: Callable[[int, np.ndarray], np.ndarray],
    block: int,
) -> None:
    """Go through the columns.

    `column` is given a place and the columns that are left of its part, [columns, rows], the one at
    that place first; it returns what that one is rounded to.
    """
    left = np.array(weight.T, dtype=np.float32, order="C")
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
