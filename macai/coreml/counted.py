"""Positions that a model counts by the length of its keys.

    mx.fast.rope(q, ..., offset=keys.shape[2] - q.shape[2])          afm7

In a package the keys are as many as the context has places, whatever is in them: such an offset is
always the same number, and is meant to be the position.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx


@contextlib.contextmanager
def counted_by_keys(position: mx.array, *, context: int, rows: int) -> Iterator[None]:
    """Give RoPE `position` where it is given context - rows. Not for several threads at once."""
    original = mx.fast.rope

    def rope(*arguments: Any, offset: int | mx.array, **options: Any) -> mx.array:
        is_counted = isinstance(offset, int) and offset == context - rows
        return original(*arguments, offset=position if is_counted else offset, **options)

    mx.fast.rope = rope
    try:
        yield
    finally:
        mx.fast.rope = original
