"""Three of MLX's functions with the types they have when used as here."""

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


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
