"""Sizes that pictures are brought to, of about the same area: aspect-ratio buckets (NovelAI)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """A width and a height in pixels."""

    width: int
    height: int


def bucket_sizes(resolution: int, *, step: int, max_aspect: float) -> list[Size]:
    """Return the sizes there are, from tall to wide.

    For each width the largest height with which the area stays within that of the square.

    Args:
        resolution: Side of the square of the largest area.
        step: Sides are multiples of it; a resolution that is none is rounded down to one.
        max_aspect: Of the longer to the shorter side; 1 leaves the square alone.
    """
    side = max(step, resolution // step * step)
    area = max(resolution, step) ** 2
    sizes = {Size(side, side)}
    for width in range(step, int(side * max_aspect) + 1, step):
        height = area // width // step * step
        longer, shorter = max(width, height), min(width, height)
        if shorter and longer / shorter <= max_aspect:
            sizes.add(Size(width, height))
    return sorted(sizes, key=lambda s: (s.width / s.height, s.width))


def choose(sizes: Sequence[Size], width: int, height: int) -> Size:
    """Return the size that a picture loses least of; of equal ones the largest."""
    aspect = math.log(width / height)

    def badness(size: Size) -> tuple[float, int]:
        return (
            round(abs(math.log(size.width / size.height) - aspect), 9),
            -size.width * size.height,
        )

    return min(sizes, key=badness)
