import mlx.core as mx
import numpy as np
import pytest

from macai.errors import UsageError
from macai.generate.sample import greedy, make_sampler

SHARES = [0.5, 0.3, 0.15, 0.05]


def draw(sampler, rows=20_000):
    mx.random.seed(0)
    logprobs = mx.broadcast_to(mx.log(mx.array(SHARES)), (rows, len(SHARES)))
    return np.bincount(np.array(sampler(logprobs)), minlength=len(SHARES)) / rows


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-40])
def test_no_temperature_takes_the_likeliest(temperature):
    assert draw(make_sampler(temperature=temperature), rows=50).tolist() == [1, 0, 0, 0]


def test_temperature_one_draws_by_probability():
    assert draw(make_sampler(temperature=1.0)) == pytest.approx(SHARES, abs=0.015)


def test_temperature_two_draws_by_the_root_of_probability():
    roots = np.sqrt(SHARES)
    assert draw(make_sampler(temperature=2.0)) == pytest.approx(roots / roots.sum(), abs=0.015)


def test_top_p_draws_from_the_fewest_that_hold_the_share():
    drawn = draw(make_sampler(temperature=1.0, top_p=0.7))
    assert drawn == pytest.approx([0.5 / 0.8, 0.3 / 0.8, 0, 0], abs=0.015)


def test_greedy_takes_the_likeliest_of_each_row():
    assert greedy(mx.array([[0.1, 0.9], [0.7, 0.2]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.1},
        {"temperature": 1.0, "top_p": float("nan")},
    ],
)
def test_what_cannot_be_drawn_from_is_refused(options):
    with pytest.raises(UsageError, match="must be"):
        make_sampler(**options)
