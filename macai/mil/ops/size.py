"""The limit on what one operation may allocate, checked before it does."""

import math
from collections.abc import Iterable

MAX_ELEMENTS = 1 << 28
"""1 GiB of float32. What is declared is checked before a run; this is for what is not declared."""


def allowed(shape: Iterable[int]) -> tuple[int, ...]:
    """Return `shape`; raise ValueError if a tensor of it would be absurd."""
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"a shape of {list(sizes)}")
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {list(sizes)} is over {MAX_ELEMENTS} elements")
    return sizes
