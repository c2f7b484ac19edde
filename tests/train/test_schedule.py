import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.train.schedule import learning_rate

NAMES = ("cosine", "linear", "constant")


def rates(name, *, warmup=10, total=100, peak=2e-4):
    return [
        learning_rate(name, step, peak=peak, warmup_steps=warmup, total_steps=total)
        for step in range(total)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_rises_in_equal_steps_to_its_peak(name):
    rising = rates(name)[:11]
    assert rising == pytest.approx([2e-4 * (i + 1) / 11 for i in range(11)], rel=1e-12)


def test_the_first_rate_is_never_zero():
    assert all(rates(name, warmup=50, total=100)[0] > 0 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_warm_up_the_first_rate_is_the_peak(name):
    assert rates(name, warmup=0)[0] == 2e-4


def test_a_cosine_is_half_way_down_in_the_middle_and_zero_after_the_end():
    after = {"peak": 1.0, "warmup_steps": 0, "total_steps": 100}
    assert learning_rate("cosine", 50, **after) == pytest.approx(0.5)
    assert learning_rate("cosine", 25, **after) == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert learning_rate("cosine", 100, **after) == pytest.approx(0)


def test_a_line_goes_to_zero_in_equal_steps():
    falling = rates("linear", warmup=0, total=4, peak=1.0)
    assert falling == [1, 0.75, 0.5, 0.25]


def test_a_constant_rate_stays_at_its_peak():
    assert set(rates("constant")[10:]) == {2e-4}


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_up_longer_than_the_run_is_half_of_it(name):
    run = rates(name, warmup=1000, total=20)
    assert run == rates(name, warmup=10, total=20)
    assert max(run) == 2e-4


@given(st.sampled_from(NAMES), st.integers(0, 50), st.integers(1, 200))
def test_a_rate_is_above_zero_and_never_above_the_peak(name, warmup, total):
    run = rates(name, warmup=warmup, total=total)
    assert all(0 < rate <= 2e-4 * (1 + 1e-12) for rate in run)
    top = run.index(max(run))
    assert run[: top + 1] == sorted(run[: top + 1])
    assert run[top:] == sorted(run[top:], reverse=True)
