"""What is computed once for all epochs: in memory up to a budget, beyond it in files."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macai.files import atomic_file

Entry = dict[str, NDArray[Any]]


class Cache:
    """Named arrays by a key that says all they depend on.

    A file that is damaged or gone is made again, so nothing in the folder is ever trusted to be
    there; what a key depends on, a file's contents for one, is in the key.
    """

    def __init__(self, folder: Path | None, budget_bytes: int) -> None:
        """Describe the cache; nothing is written before the budget is spent.

        Without a folder what is beyond it is made anew each time: for what is read from files.
        """
        self._folder = folder
        self._left = budget_bytes
        self._memory: dict[str, Entry] = {}

    def get(self, key: str, make: Callable[[], Entry]) -> Entry:
        """Return what `key`, a name for a file, stands for: as `make` returned it once."""
        if key in self._memory:
            return self._memory[key]
        file = None if self._folder is None else self._folder / f"{key}.npz"
        entry = _read(file) if file else None
        if entry is not None:
            return entry
        entry = make()
        size = sum(array.nbytes for array in entry.values())
        if size <= self._left:
            self._left -= size
            self._memory[key] = entry
        elif file:
            with atomic_file(file) as temporary:
                np.savez(temporary, **entry)  # type: ignore[arg-type]  # numpy's stub of **kwds
        return entry


def _read(file: Path) -> Entry | None:
    if not file.is_file():
        return None
    try:
        # A zip: each array has a checksum. numpy leaves a damaged file that it opened open.
        with file.open("rb") as f, np.load(f, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
