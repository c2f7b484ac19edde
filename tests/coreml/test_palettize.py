import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.coreml.palettize import Sums, boundaries, means, nearest, palettize


def normal(*shape, seed=0):
    return (0.05 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def squared_error(values, counts, k):
    """What the boundaries found cost."""
    sums = Sums.of(values[None], counts[None])
    centres = means(sums, boundaries(sums, values[None], k))
    indices = nearest(values[None], np.sort(centres, axis=1))[0]
    return float((counts * (values - np.sort(centres[0])[indices]) ** 2).sum())


def least_error(values, counts, k):
    best = float("inf")
    for cuts in itertools.combinations_with_replacement(range(len(values) + 1), k - 1):
        total = 0.0
        for begin, end in itertools.pairwise((0, *cuts, len(values))):
            if end > begin:
                v, c = values[begin:end], counts[begin:end]
                total += (c * (v - (c * v).sum() / c.sum()) ** 2).sum()
        best = min(best, total)
    return best


@given(
    st.dictionaries(st.integers(-200, 200), st.integers(1, 9), min_size=1, max_size=11),
    st.sampled_from([2, 4]),
)
@settings(max_examples=150, deadline=None)
def test_no_other_table_is_better(histogram, k):
    values = np.array(sorted(histogram), dtype=np.float64)
    counts = np.array([histogram[int(v)] for v in values], dtype=np.float64)
    assert squared_error(values, counts, k) == pytest.approx(
        least_error(values, counts, k), abs=1e-6
    )


@pytest.mark.parametrize(
    ("k", "off"), [(2, 1e-4), (4, 1e-4), (8, 1e-4), (16, 1e-4), (64, 1e-3), (256, 5e-3)]
)
@pytest.mark.parametrize("distribution", ["normal", "laplace", "standard_t"])
def test_as_good_as_the_optimum_that_coremltools_finds(distribution, k, off):
    from coremltools._deps import _kmeans1d

    draw = getattr(np.random.default_rng(1), distribution)
    sample = draw(3, size=20_000) if distribution == "standard_t" else draw(size=20_000)
    values, counts = np.unique((0.05 * sample).astype(np.float16), return_counts=True)
    values, counts = values.astype(np.float64), counts.astype(np.float64)
    optimum = np.sort(_kmeans1d.cluster(values, k, weights=counts).centroids)[None]
    least = (counts * (values - optimum[0][nearest(values[None], optimum)[0]]) ** 2).sum()
    assert squared_error(values, counts, k) <= least * (1 + off)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("group", [None, 16, 32])
def test_more_bits_are_better_and_all_are_near_theory(bits, group):
    weight = normal(64, 96)
    palette = palettize(weight, bits=bits, group=group)
    error = np.square(palette.dense() - weight).mean() / np.square(weight).mean()
    # Of a normal distribution: Max, 1960; Panter and Dite's limit for many.
    assert error < {1: 0.38, 2: 0.125, 3: 0.037, 4: 0.0105, 6: 0.00075, 8: 0.00005}[bits]


def test_groups_have_tables_of_their_own_that_are_as_good_alone():
    weight = normal(64, 80) * np.repeat([1, 5], 32)[:, None]
    together = palettize(weight, bits=3, group=32)
    for part, rows in enumerate((np.s_[:32], np.s_[32:])):
        alone = palettize(weight[rows], bits=3)
        error = np.square(together.dense()[rows] - weight[rows]).sum()
        assert error <= np.square(alone.dense() - weight[rows]).sum() * 1.001
        assert together.tables[part, 0].max() < weight[rows].max()


@pytest.mark.parametrize("group", [None, 2])
def test_fewer_values_than_entries_are_kept_exactly(group):
    weight = np.array([[0.5, -1, 0, 0.5], [0, 0, 2, -1]] * 2, dtype=np.float32)
    palette = palettize(weight, bits=4, group=group)
    np.testing.assert_array_equal(palette.dense(), weight)


def test_columns_that_count_more_are_nearer():
    weight, importance = normal(32, 64), np.repeat([100.0, 1.0], 32)
    errors = np.square(palettize(weight, bits=2, importance=importance).dense() - weight).mean(0)
    plain = np.square(palettize(weight, bits=2).dense() - weight).mean(0)
    assert (errors * importance).sum() <= (plain * importance).sum()
    grouped = palettize(weight, bits=2, group=16, importance=importance).dense()
    assert (np.square(grouped - weight).mean(0) * importance).sum() < (errors * importance).sum()


def test_the_same_weight_gives_the_same_palette():
    one, two = (palettize(normal(32, 64), bits=4, group=16) for _ in range(2))
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.tables, two.tables)
