import numpy as np
import pytest

from macai.coreml.lloyd_max import settled
from macai.coreml.palettize import Sums, means


def of(values):
    """Distinct values, and the running sums that `settled` takes."""
    values, counts = np.unique(values.astype(np.float16), return_counts=True)
    values = values.astype(np.float64)
    sums = Sums.of(values[None], counts[None].astype(np.float64))
    return values, sums


def error(values, sums, places):
    """The squared error of a table, relative to the values' squares."""
    weight, moment = np.diff(sums.weight[0][places]), np.diff(sums.moment[0][places])
    squares = (np.diff(sums.weight[0]) * values**2).sum()
    return 1 - (moment**2 / np.maximum(weight, 1e-300)).sum() / squares


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_boundaries_are_midway_between_the_means_beside_them(draw):
    values, sums = of(getattr(np.random.default_rng(0), draw)(size=400_000))
    places = settled(values, sums.weight[0], sums.moment[0], 32)
    centres = means(sums, places[None])[0]
    middles = (centres[1:] + centres[:-1]) / 2
    ends, widths = values[places[1:-1]], np.diff(centres)
    inner = slice(4, -4)  # in the tails values are too few for it
    assert np.abs(ends - middles)[inner].max() < 0.05 * widths[inner].min()


def test_it_is_near_the_limit_of_fine_tables():
    """Panter and Dite: pi sqrt(3) / 2 / k^2 of a normal distribution's variance."""
    values, sums = of(np.random.default_rng(1).standard_normal(1_000_000))
    for k in (32, 64):
        found = error(values, sums, settled(values, sums.weight[0], sums.moment[0], k))
        assert found == pytest.approx(np.pi * np.sqrt(3) / 2 / k**2, rel=0.06)


def test_every_interval_is_in_order_however_few_the_values():
    for values in (np.arange(40.0), np.repeat([1.0, 2, 3], 50), np.zeros(100)):
        sums = Sums.of(np.sort(values)[None])
        places = settled(np.sort(values), sums.weight[0], sums.moment[0], 16)
        assert places[0] == 0
        assert places[-1] == len(values)
        assert (np.diff(places) >= 0).all()
