"""Medians with their uncertainty, and tests of a difference; for few samples on a noisy machine.

Distributions are computed here: macai needs three functions of them, not a statistics package.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
TRIM = 0.2


class Summary(NamedTuple):
    """Of samples: their median, percentiles 10 and 90, and a 95 % interval of the median."""

    median: float
    p10: float
    p90: float
    low: float
    high: float


def summarise(values: Sequence[float], *, seed: int = 0) -> Summary:
    """Return the summary of at least one finite value, in the order they were measured in."""
    low, high = bootstrap_interval(values, seed=seed)
    return Summary(
        statistics.median(values), quantile(values, 0.1), quantile(values, 0.9), low, high
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, linear between the order statistics (R's type 7, numpy's default)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, share: float = 0.95
) -> tuple[float, float]:
    """Return a percentile interval of the median from a moving-block bootstrap.

    Samples that follow each other are alike, so blocks of n^(1/3) neighbours are drawn instead of
    single ones: H. R. Künsch, "The jackknife and the bootstrap for general stationary
    observations", Annals of Statistics 17 (1989). Of few samples it is a little short: for 20 that
    are independent it covers nine times in ten.
    """
    n, draw = len(values), np.random.default_rng(seed)
    length = max(1, round(n ** (1 / 3)))
    begins = draw.integers(0, n - length + 1, (RESAMPLES, -(-n // length)))
    places = (begins[..., None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]
    medians = np.median(np.asarray(values, np.float64)[places], axis=1).tolist()
    tail = (1 - share) / 2
    return quantile(medians, tail), quantile(medians, 1 - tail)


class Spread(NamedTuple):
    """Of samples: their trimmed mean, the square of its standard error, degrees of freedom."""

    mean: float
    variance: float
    freedom: int


def trimmed(values: Sequence[float], share: float = TRIM) -> Spread:
    """Return the trimmed mean and its squared error by winsorising.

    K. K. Yuen, "The two-sample trimmed t for unequal population variances", Biometrika 61 (1974).
    A machine's interruptions are outliers on one side: they move this mean little.
    """
    ordered, n = sorted(values), len(values)
    cut = int(share * n)
    kept = n - 2 * cut
    inner = ordered[cut : n - cut]
    winsorised = [inner[0]] * cut + inner + [inner[-1]] * cut
    squares = (n - 1) * statistics.variance(winsorised)
    return Spread(statistics.fmean(inner), squares / (kept * (kept - 1)), kept - 1)


def autocorrelation(values: Sequence[float]) -> float:
    """Return how alike neighbours are, about their median: -1 to 1; 0 where all are equal."""
    middle = statistics.median(values)
    apart = [value - middle for value in values]
    total = sum(a * a for a in apart)
    return sum(a * b for a, b in pairwise(apart)) / total if total else 0.0


def inflation(correlations: Sequence[float], n: int) -> float:
    """Return by how much neighbours that are alike raise the variance of a mean of `n` samples.

    (1 + r) / (1 - r) of a process with the lag-1 correlation r; the mean of several estimates, each
    too low by about (1 + 4 r) / n (M. G. Kendall, Biometrika 41 (1954)), is taken for r.
    """
    if n <= 4 or not correlations:
        return 1.0
    r = (n * statistics.fmean(correlations) + 1) / (n - 4)
    r = min(max(r, 0.0), 0.8)
    return (1 + r) / (1 - r)


def student_tail(t: float, freedom: float) -> float:
    """Return the probability that Student's t with so many degrees of freedom exceeds `t`."""
    if t < 0:
        return 1 - student_tail(-t, freedom)
    return 0.5 * _beta_share(freedom / 2, 0.5, freedom / (freedom + t * t))


def student_quantile(share: float, freedom: float) -> float:
    """Return what Student's t with so many degrees of freedom is below with this probability."""
    low, high = -1e3, 1e3
    for _ in range(80):  # halves until doubles end
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > 1 - share else (low, middle)
    return low


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b): https://dlmf.nist.gov/8.17#SS5.p1."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta_share(b, a, 1 - x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log1p(-x)) / a

    def coefficient(k: int) -> float:
        m = k // 2
        if k % 2 == 0:
            return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))

    return front / _continued_fraction(coefficient)


def _continued_fraction(coefficient: Callable[[int], float]) -> float:
    """1 + c1 / (1 + c2 / (1 + ...)), from its far end."""
    value = 1.0
    for k in range(200, 0, -1):
        value = 1 + coefficient(k) / value
    return value


def holm(chances: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, so that one in 20 families has a false one.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6 (1979). It holds whatever the tests have to do with each other.
    """
    order = sorted(range(len(chances)), key=chances.__getitem__)
    adjusted, least = [0.0] * len(chances), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(chances) - rank) * chances[place]))
        adjusted[place] = least
    return adjusted
