import numpy as np
import pytest

from macai.mil.half import rounded_to_half


def by_numpy(array):
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half.astype(np.float32), half.size - np.count_nonzero(np.isfinite(half))


def assert_same(array):
    ours, infinite = rounded_to_half(array)
    theirs, expected = by_numpy(array)
    assert ours.dtype == np.float32
    assert ours.shape == array.shape
    assert ours.view(np.uint32).tolist() == theirs.view(np.uint32).tolist()
    assert infinite == expected


def test_every_number_of_float16_stays_and_halfway_ones_go_to_the_even_one():
    bits = np.arange(1 << 16, dtype=np.uint16)
    every = bits.view(np.float16)
    every = np.sort(every[np.isfinite(every)]).astype(np.float32)
    assert_same(every)
    halfway = every[:-1] + np.diff(every) / 2
    assert_same(halfway)
    for towards in (-np.inf, np.inf):
        assert_same(np.nextafter(halfway, np.float32(towards)))
    assert_same(np.array([0.0, -0.0, -1e-12, 1e-45], np.float32))


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 3e4])
def test_random_numbers_are_rounded_as_numpy_rounds_them(scale):
    drawn = np.random.default_rng(0).standard_normal((3, 50_001)).astype(np.float32)
    assert_same(drawn * np.float32(scale))
    assert_same((drawn * np.float32(scale)).T)


def test_what_is_beyond_it_is_counted():
    beyond = np.array([65504, 65519.9, 65520, -1e6, 3e38, np.inf, -np.inf, np.nan], np.float32)
    ours, infinite = rounded_to_half(np.concatenate([np.zeros(100_000, np.float32), beyond]))
    assert infinite == 6
    assert ours[-8:-6].tolist() == [65504, 65504]
    assert ours[-6:-1].tolist() == [np.inf, -np.inf, np.inf, np.inf, -np.inf]
    assert np.isnan(ours[-1])


def test_no_numbers_are_none():
    assert rounded_to_half(np.empty((0, 3), np.float32))[0].shape == (0, 3)
