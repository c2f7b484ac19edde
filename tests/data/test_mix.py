"""Data sets mixed by weight: how often each row is seen."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.data.batches import Steps, plan_epoch
from macai.data.mix import Epochs, rows_seen

WEIGHTS = st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0, 1.5, 2.0, 2.5, 7.0])


@given(st.lists(st.tuples(st.integers(1, 60), WEIGHTS), min_size=1, max_size=4), st.integers(1, 12))
def test_after_some_epochs_each_row_was_seen_as_its_weight_says(sets, epochs):
    sizes, weights = zip(*sets, strict=True)
    seen = Counter()
    for epoch in range(epochs):
        rows = rows_seen(sizes, weights, seed=3, epoch=epoch)
        seen.update(rows.tolist())
        begin = 0
        for size, weight in sets:
            count = int(((rows >= begin) & (rows < begin + size)).sum())
            assert abs(count - size * weight) < 1 + 1e-9
            begin += size
    assert set(seen) <= set(range(sum(sizes)))
    begin = 0
    for size, weight in sets:
        times = [seen[row] for row in range(begin, begin + size)]
        low = np.floor(epochs * weight + 1e-9)
        assert all(low <= n <= np.ceil(epochs * weight - 1e-9) for n in times)
        begin += size


def test_a_quarter_of_the_rows_is_another_one_each_epoch():
    parts = [set(rows_seen([40], [0.25], seed=1, epoch=e).tolist()) for e in range(4)]
    assert [len(part) for part in parts] == [10] * 4
    assert set.union(*parts) == set(range(40))
    assert parts[0] != set(range(10))  # not those that come first
    assert set(rows_seen([40], [0.25], seed=1, epoch=4).tolist()) == parts[0]


def test_what_an_epoch_has_follows_from_seed_and_epoch_alone():
    options = {"sizes": [30, 50], "weights": [1.0, 0.3]}
    first = rows_seen(**options, seed=2, epoch=1).tolist()
    np.random.default_rng().random(9)
    assert rows_seen(**options, seed=2, epoch=1).tolist() == first
    assert rows_seen(**options, seed=3, epoch=1).tolist() != first
    # A resumed run may be on another machine or version: it must come to the same.
    assert rows_seen([3, 6], [1.0, 0.5], seed=0, epoch=0).tolist() == PINNED


PINNED = [0, 1, 2, 4, 5, 7]


def test_steps_hold_the_rows_of_the_epoch_and_no_others():
    lengths = np.array([9, 30, 9, 9, 30, 9, 17, 17])
    rows = np.array([1, 3, 3, 3, 7])
    steps = plan_epoch(lengths, tokens=64, micro_tokens=32, seed=0, epoch=0, rows=rows)
    plans = [plan for step in steps for plan in step]
    assert sorted(row for plan in plans for row in plan.rows) == rows.tolist()
    assert all(plan.width >= lengths[row] for plan in plans for row in plan.rows)
    everything = {"tokens": 64, "micro_tokens": 32, "seed": 0, "epoch": 0}
    assert plan_epoch(lengths, **everything, rows=np.arange(8)) == plan_epoch(lengths, **everything)


def counted(counts, epoch):
    return Steps(lambda number: [], np.arange(counts[epoch % len(counts)]))


@pytest.mark.parametrize(
    ("counts", "alike", "epochs", "total"),
    [
        ([5], True, 2.5, 12),
        ([5], True, 0.01, 1),
        ([5, 7, 4], False, 2.0, 12),
        ([5, 7, 4], False, 2.5, 14),
        ([5, 7, 4], False, 4.2, 22),
        ([5, 7, 4], False, 0.05, 1),
    ],
)
def test_a_run_has_the_steps_of_its_epochs(counts, alike, epochs, total):
    assert Epochs(partial(counted, counts), alike).total(epochs) == total


def test_a_step_is_in_the_epoch_that_has_it():
    epochs = Epochs(partial(counted, [5, 7, 4]), alike=False)
    places = [epochs.place(step) for step in range(16)]
    assert places == [(e, n) for e, count in enumerate([5, 7, 4]) for n in range(count)]
    assert Epochs(partial(counted, [5]), alike=True).place(13) == (2, 3)
