"""Rows that are there twice: in training, or to learn from and to check with."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from macai.data.rows import Row, Splits, digests_of
from macai.errors import DataError


def leaks(splits: Splits) -> list[tuple[str, str]]:
    """Return which rows to check with are training rows as well: (where, where in training)."""
    learnt = digests_of(splits.train)
    both = [split for split in (splits.valid, splits.test) if len(split)]
    shared = np.intersect1d(learnt, np.concatenate([learnt[:0], *map(digests_of, both)]))
    if not len(shared):
        return []
    known = _first(splits.train, learnt, shared)
    return [pair for split in both for pair in _as_known(split, shared, known)]


def duplicates(rows: Collection[Row]) -> list[tuple[str, str]]:
    """Return the rows that are there already: (where, where first)."""
    digests = digests_of(rows)
    values, counts = np.unique(digests, return_counts=True)
    several = values[counts > 1]
    pairs = _as_known(rows, several, _first(rows, digests, several)) if len(several) else []
    return [(source, known) for source, known in pairs if source != known]


def _first(
    rows: Collection[Row], digests: NDArray[np.uint64], wanted: NDArray[np.uint64]
) -> dict[int, str]:
    """Return where the first row of each digest that is wanted stands."""
    of_wanted = zip(np.isin(digests, wanted), digests.tolist(), rows, strict=True)
    first: dict[int, str] = {}
    for is_wanted, digest, row in of_wanted:
        if is_wanted:
            first.setdefault(digest, row.source)
    return first


def _as_known(
    rows: Collection[Row], digests: NDArray[np.uint64], known: dict[int, str]
) -> list[tuple[str, str]]:
    own = digests_of(rows)
    return [
        (row.source, known[digest])
        for is_known, digest, row in zip(np.isin(own, digests), own.tolist(), rows, strict=True)
        if is_known
    ]


def require_apart(splits: Splits, *, hint: str) -> None:
    """Raise DataError if a validation loss would be of rows that are learnt."""
    tested = {row.source for row in splits.test}
    if found := [pair for pair in leaks(splits) if pair[0] not in tested]:
        lines = [f"{row} is the same as {known}" for row, known in found]
        count = f"{len(found)} validation row{'' if len(found) == 1 else 's'}"
        raise DataError("\n  ".join([f"{count} in the training data:", *lines]), hint=hint)
