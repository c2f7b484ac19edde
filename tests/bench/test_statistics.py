import math
import random
import statistics as standard

import numpy as np
import pytest

from macai.bench.statistics import (
    autocorrelation,
    bootstrap_interval,
    holm,
    inflation,
    quantile,
    student_quantile,
    student_tail,
    summarise,
    trimmed,
)


@pytest.mark.parametrize(
    ("freedom", "t", "tail"),
    [
        # Tables of Student's t: 5 %, 2.5 % and 0.05 % on one side.
        (1, 6.3138, 0.05),
        (5, 2.5706, 0.025),
        (10, 1.8125, 0.05),
        (10, 4.5869, 0.0005),
        (30, 2.0423, 0.025),
        (1e6, 1.95996, 0.025),
    ],
)
def test_tails_of_students_t_are_those_of_the_tables(freedom, t, tail):
    assert student_tail(t, freedom) == pytest.approx(tail, rel=2e-4)
    assert student_tail(-t, freedom) == pytest.approx(1 - tail, rel=2e-4)


def test_a_t_of_zero_is_exceeded_half_of_the_time():
    assert student_tail(0.0, 7) == pytest.approx(0.5)


def test_quantiles_are_those_of_numpy():
    values = [random.Random(0).random() for _ in range(23)]
    for share in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_the_interval_of_a_median_of_twenty_covers_it_nine_times_in_ten():
    draw, hits = random.Random(1), 0
    for number in range(200):
        low, high = bootstrap_interval([draw.gauss(5, 1) for _ in range(20)], seed=number)
        hits += low <= 5 <= high
    assert 166 <= hits <= 194


def test_a_summary_is_the_same_whenever_it_is_made_and_in_order():
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    summary = summarise(values, seed=3)
    assert summary == summarise(values, seed=3)
    assert summary.median == 3.0
    assert summary.low <= summary.median <= summary.high
    assert summary.p10 < summary.p90


def test_one_sample_is_its_own_summary():
    assert set(summarise([2.5])) == {2.5}


def test_a_trimmed_mean_leaves_an_interruption_out():
    calm = [10.0, 10.1, 9.9, 10.0, 10.05, 9.95]
    assert trimmed([*calm, 99.0]).mean == pytest.approx(10.0, abs=0.05)


def test_an_untrimmed_mean_has_the_textbook_error():
    values = [1.0, 2.0, 4.0, 8.0]
    spread = trimmed(values, share=0.0)
    assert spread.mean == standard.fmean(values)
    assert spread.variance == pytest.approx(standard.variance(values) / 4)
    assert spread.freedom == 3


def test_neighbours_that_are_alike_raise_the_error_and_independent_ones_hardly_do():
    draw = random.Random(2)
    alone = [[draw.gauss(0, 1) for _ in range(20)] for _ in range(50)]
    walks = [list(np.cumsum(values)) for values in alone]
    assert inflation([autocorrelation(v) for v in alone], 20) < 1.3
    assert inflation([autocorrelation(v) for v in walks], 20) > 5
    assert inflation([], 20) == 1.0


def test_holm_multiplies_the_least_by_their_number_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_lets_one_family_in_twenty_have_a_false_one():
    draw, families = random.Random(4), 0
    for _ in range(1000):
        families += min(holm([draw.random() for _ in range(30)])) < 0.05
    assert families / 1000 == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 1000))


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.3027), (30, 2.0423)])
def test_the_quantiles_are_those_of_the_printed_tables(freedom, expected):
    assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-4)
    assert student_quantile(0.025, freedom) == pytest.approx(-expected, rel=1e-4)
