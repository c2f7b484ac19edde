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

    For each shorter side the longest other one with which the area stays within the square's.

    Args:
        resolution: Side of the square of the largest area.
        step: Sides are multiples of it; a resolution that is none is rounded down to one.
        max_aspect: Of the longer to the shorter side; 1 leaves the square alone.
    """
    side = max(step, resolution // step * step)
    sizes = {Size(side, side)}
    for shorter in range(step, side + 1, step):
        longer = max(resolution, step) ** 2 // shorter // step * step
        if shorter <= longer <= shorter * max_aspect:
            sizes |= {Size(shorter, longer), Size(longer, shorter)}
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
