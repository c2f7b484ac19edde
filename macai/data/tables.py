"""Rows as the files of a data set hold them: lines of JSON, CSV, Parquet, or a set of the hub."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macai.data.hub import hub_rows, is_hub
from macai.errors import DataError

SUFFIXES = (".jsonl", ".csv", ".parquet")


def raw_rows(path: Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """Yield (number, row): a line of JSON as bytes, or a row of a table by column.

    The number is that of the line, in Parquet of the row, from 1. Blank lines, and columns without
    a value, are left out. What is neither .csv nor .parquet is lines of JSON; see also
    `macai.data.hub`.

    Raises:
        DataError: the file cannot be read, or it is Parquet and there is no pyarrow.
    """
    kind = path.suffix.lower()
    try:
        if is_hub(path):
            yield from ((number, _present(row)) for number, row in hub_rows(path))
        elif kind == ".csv":
            yield from _csv(path)
        elif kind == ".parquet":
            yield from _parquet(path)
        else:
            yield from _lines(path)
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read: {e.strerror or e}", hint="--data takes a file of rows"
        ) from e


def split_file(folder: Path, split: str) -> Path | None:
    """Return the file of a split in a folder, None if there is none.

    Raises:
        DataError: there are several.
    """
    files = [file for s in SUFFIXES if (file := folder / f"{split}{s}").is_file()]
    if len(files) > 1:
        raise DataError(
            f"{folder}: {' and '.join(f.name for f in files)}", hint="leave one of them"
        )
    return files[0] if files else None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:  # a line ends at b"\n" alone: others occur inside strings
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip(b"\n")


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            for row in table:
                if None in row:
                    raise csv.Error("more cells than columns")
                yield table.line_num, {k: v for k, v in row.items() if v}
        except (csv.Error, UnicodeDecodeError) as e:
            raise DataError(
                f"{path}:{table.line_num + 1}: not CSV in UTF-8: {e}",
                hint="a table has the columns prompt and completion, or text",
            ) from e


def _present(value: Any) -> Any:
    """Return a value without the members that have none: all rows of a table have all of them."""
    if isinstance(value, dict):
        return {k: _present(v) for k, v in value.items() if v is not None}
    return [_present(v) for v in value] if isinstance(value, list) else value


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as e:
        raise DataError(
            f"{path}: reading Parquet takes the pyarrow package",
            hint="pip install pyarrow, which comes with datasets as well",
        ) from e
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, _present(row)
    except ArrowException as e:
        raise DataError(f"{path}: not Parquet: {' '.join(str(e).split())[:200]}") from e
