"""Data sets of the Hugging Face hub, and folders laid out like one, through the `datasets` package.

`hub:owner/name`, with a configuration `hub:owner/name:config`, and of a revision
`hub:owner/name@revision`; in place of the name may stand the path of a folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macai.errors import DataError

PREFIX = "hub:"
_NAMES = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}


def is_hub(path: Path) -> bool:
    """Return whether a path is not one, but names a data set."""
    return str(path).startswith(PREFIX)


def hub_splits(path: Path) -> dict[str, Path]:
    """Return what to give `hub_rows` for each split that there is: train, valid, test.

    Raises:
        DataError: `datasets` is not installed or cannot load it, or it has no split to learn from.
    """
    there = list(_load(path))
    named = {
        split: Path(f"{path}#{name}")
        for split, names in _NAMES.items()
        for name in names[::-1]
        if name in there
    }
    if "train" not in named:
        raise DataError(f"{path}: no split 'train'", hint=f"it has {', '.join(there)}")
    return named


def hub_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, row) of a split; it is read from datasets' cache, not into memory."""
    whole, _, split = str(path).rpartition("#")
    yield from enumerate(_load(Path(whole))[split], 1)


def _load(path: Path) -> Any:
    """Return a DatasetDict."""
    try:
        import datasets
    except ImportError as e:
        raise DataError(
            f"{path}: reading it takes the datasets package",
            hint="pip install 'macai[datasets]'; or give a file of rows",
        ) from e
    rest, _, revision = str(path).removeprefix(PREFIX).partition("@")
    name, _, config = rest.partition(":")
    try:
        return datasets.load_dataset(name, config or None, revision=revision or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        raise DataError(
            f"{path}: {' '.join(str(e.__cause__ or e).split())[:300]}",
            hint="a name as on the hub, owner/name, and :config where it has several",
        ) from e
