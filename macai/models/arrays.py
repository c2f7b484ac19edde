"""A few of MLX's functions, with the types and errors they have when used as here."""

import zlib
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from macai.errors import OutputError
from macai.files import atomic_file

CHECKSUM = "macai.crc32"
"""In a file's metadata: of its arrays' names and bytes. A safetensors file has none of its own."""


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """Return the arrays of nested dicts and lists by dotted path."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def scalar(x: mx.array) -> float:
    """Return a one-element array as a float; evaluates it."""
    return float(cast(float, x.item()))


def load_arrays(file: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Return the arrays and the metadata of a safetensors file.

    Raises:
        RuntimeError: it is truncated, no such file, or has other values than were saved.
    """
    arrays, metadata = cast(
        tuple[dict[str, mx.array], dict[str, str]], mx.load(str(file), return_metadata=True)
    )
    if CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(arrays):
        raise RuntimeError("damaged: its values are not those that were saved")
    return arrays, metadata


def save_arrays(
    file: Path, arrays: dict[str, mx.array], metadata: dict[str, str], *, checked: bool = False
) -> None:
    """Write a safetensors file, atomically; OutputError if it cannot be written.

    With `checked` it has a checksum of its values, which `load_arrays` looks at.
    """
    if checked:
        metadata = metadata | {CHECKSUM: _checksum(arrays)}
    with atomic_file(file) as temporary:
        try:
            mx.save_safetensors(str(temporary), arrays, metadata=metadata)
        except RuntimeError as e:  # MLX's for a full disk as for a missing folder
            raise OutputError(f"{file}: cannot be written: {e}", hint="is the disk full?") from e


def _checksum(arrays: dict[str, mx.array]) -> str:
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(name.encode(), found)
        if arrays[name].size:
            found = zlib.crc32(np.array(arrays[name].reshape(-1).view(mx.uint8)).data, found)
    return f"{found:08x}"
