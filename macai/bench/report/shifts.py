"""By how much logarithms of samples moved, how sure that is, and how likely by chance."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from macai.bench import statistics as stats

FEWEST = 4
"""Samples on either side."""
_FLOOR = 0.002
"""Clocks and allocators are no better than this share: the least standard deviation."""

Both = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A figure as two reports have it."""


class Shift(NamedTuple):
    """What the logarithms moved by, the square of its error; no freedom where samples are few."""

    mean: float
    variance: float = 0.0
    freedom: float = 0.0


def shift_of_runs(both: Both, correlations: Sequence[float]) -> Shift:
    """Return that between samples of two runs, with Welch's degrees of freedom.

    `correlations` say how alike neighbouring samples are, of this figure and those like it.
    """
    samples = [logarithms(figure["values"]) for figure in both]
    if min(map(len, samples)) < FEWEST:
        first, second = map(statistics.median, samples)
        return Shift(second - first)
    spreads = [stats.trimmed(values) for values in samples]
    parts = []
    for spread, values in zip(spreads, samples, strict=True):
        worse = stats.inflation(correlations, len(values))
        parts.append(max(spread.variance, _FLOOR**2 / len(values)) * worse)
    variance = sum(parts)
    freedom = variance**2 / sum(v**2 / s.freedom for v, s in zip(parts, spreads, strict=True))
    return Shift(spreads[1].mean - spreads[0].mean, variance, freedom)


def shift_of_pairs(ratios: Sequence[float], correlations: Sequence[float]) -> Shift:
    """Return that of pairs, by the logarithms of their ratios in the order of the rounds."""
    if len(ratios) < FEWEST:
        return Shift(statistics.median(ratios))
    spread = stats.trimmed(ratios)
    worse = stats.inflation(correlations, len(ratios))
    variance = max(spread.variance, 2 * _FLOOR**2 / len(ratios)) * worse
    return Shift(spread.mean, variance, spread.freedom)


def chance(shift: Shift, low: float, high: float, least: float) -> float | None:
    """Return how likely chance alone moves this far; None of too few samples.

    From `low` to `high` the machine may explain it, and `least` beyond that is nobody's concern.
    """
    if not shift.freedom:
        return None
    beyond = max(shift.mean - (high + least), (low - least) - shift.mean)
    if beyond <= 0:
        return 1.0
    tail = stats.student_tail(beyond / math.sqrt(shift.variance), shift.freedom)
    return min(1.0, 2 * tail)


def certain(shift: Shift) -> float:
    """Return the end next to 0 of its 95 % interval; 0 if that holds 0."""
    reach = stats.student_quantile(0.975, shift.freedom) * math.sqrt(shift.variance)
    return math.copysign(max(0.0, abs(shift.mean) - reach), shift.mean)


def likeness(
    samples: Sequence[tuple[Mapping[str, Any], Sequence[float]]],
) -> dict[str, list[float]]:
    """Return by section how much neighbours are alike, of figures with logarithms of theirs."""
    found: dict[str, list[float]] = {}
    for figure, values in samples:
        own = found.setdefault(figure["section"], [])
        if figure["unit"] != "bytes" and len(values) >= FEWEST:
            own.append(stats.autocorrelation(values))
    return found


def ratios(both: Both, key: str = "values") -> list[float]:
    """Return the logarithms of what pairs differ by; a run that was stopped ends with half."""
    first, second = (logarithms(figure[key]) for figure in both)
    return [b - a for a, b in zip(first, second, strict=False)]


def logarithms(values: Sequence[float]) -> list[float]:
    """Return them of values that may be 0."""
    return [math.log(max(value, 1e-12)) for value in values]
