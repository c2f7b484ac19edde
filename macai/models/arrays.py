"""A few of MLX's functions, with the types and errors they have when used as here."""

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from macai.errors import OutputError
from macai.files import atomic_file


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """Return the arrays of nested dicts and lists by dotted path."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def scalar(x: mx.array) -> float:
    """Return a one-element array as a float; evaluates it."""
    return float(cast(float, x.item()))


def load_arrays(file: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Return the arrays and the metadata of a safetensors file.

    Raises:
        RuntimeError: it is truncated or no such file.
    """
    return cast(
        tuple[dict[str, mx.array], dict[str, str]], mx.load(str(file), return_metadata=True)
    )


def save_arrays(file: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically; OutputError if it cannot be written."""
    with atomic_file(file) as temporary:
        try:
            mx.save_safetensors(str(temporary), arrays, metadata=metadata)
        except RuntimeError as e:  # MLX's for a full disk as for a missing folder
            raise OutputError(f"{file}: cannot be written: {e}", hint="is the disk full?") from e
