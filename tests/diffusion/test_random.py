"""Noise is what torch, CUDA, NumPy and MLX draw from the same seed."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.random import KINDS, Noise, philox4x32
from macai.errors import UsageError

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "diffusion_noise.json").read_text("utf-8")
)


@pytest.mark.parametrize("stream", GOLDEN["streams"], ids=lambda stream: str(stream["seed"]))
def test_a_seed_gives_torchs_numbers_over_many_draws_of_all_sizes(stream):
    noise = Noise("torch", stream["seed"])
    for draw in stream["draws"]:
        size = draw["size"]
        numbers = noise.normal((size,))
        if size > 64:
            numbers = np.concatenate([numbers[:: size // 24][:24], numbers[-20:]])
        assert np.abs(numbers - np.array(draw["numbers"])).max() < 1e-6


KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("line", KNOWN_ANSWERS.strip().splitlines())
def test_philox_gives_the_published_words(line):
    """Counter, key and words: the known answers for philox4x32-10 of its authors' Random123."""
    words = [int(word, 16) for word in line.split()]
    counter = np.array(words[:4], dtype=np.uint64).reshape(4, 1)
    assert philox4x32(counter, (words[4], words[5]))[:, 0].tolist() == words[6:]


def test_cuda_noise_of_seed_0_is_as_published():
    """What A1111's own emulation documents for torch.randn((3, 4)) on a CUDA device, seed 0."""
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    assert np.abs(Noise("cuda", 0).normal((3, 4)) - expected).max() < 1e-6


def test_each_call_of_cuda_noise_counts_one_further_and_high_seeds_reach_the_key():
    noise = Noise("cuda", (7 << 32) | 3)
    noise.normal((2, 2))
    second = noise.normal((5,))
    counter = np.array([[1] * 5, [0] * 5, range(5), [0] * 5], dtype=np.uint64)
    uniform, angle = philox4x32(counter, (3, 7))[:2] / 2**32
    expected = np.sqrt(-2 * np.log(uniform)) * np.sin(2 * np.pi * angle)
    np.testing.assert_allclose(second, expected, atol=1e-5)


def test_numpy_noise_is_the_legacy_generators():
    noise, state = Noise("numpy", 4), np.random.RandomState(4)
    for shape in ((2, 3), (5,), (1, 4, 8, 8)):
        np.testing.assert_array_equal(noise.normal(shape), state.randn(*shape).astype(np.float32))


def test_mlx_noise_is_mlxs_own():
    noise = Noise("mlx", 9)
    _, first = mx.random.split(mx.random.key(9))
    expected = np.array(mx.random.normal((6,), key=first))
    np.testing.assert_array_equal(noise.normal((2, 3)).reshape(-1), expected)
    assert np.abs(noise.normal((6,)) - expected).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_float32_standard_and_repeatable(kind):
    numbers = Noise(kind, 123).normal((4, 64, 257))
    assert numbers.dtype == np.float32
    assert numbers.shape == (4, 64, 257)
    assert abs(numbers.mean()) < 0.02
    assert abs(numbers.std() - 1) < 0.02
    np.testing.assert_array_equal(Noise(kind, 123).normal((4, 64, 257)), numbers)
    assert np.abs(Noise(kind, 124).normal((4, 64, 257)) - numbers).max() > 1
    assert Noise(kind, 1).normal((0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("kind", "seed"),
    [("numpy", -1), ("numpy", 2**32), ("torch", 2**64), ("cuda", -(2**63) - 1), ("mlx", 2**64)],
)
def test_a_seed_out_of_range_is_refused(kind, seed):
    with pytest.raises(UsageError, match=f"seed {seed} "):
        Noise(kind, seed)


def test_a_negative_seed_counts_back_from_the_top():
    for kind in ("torch", "cuda", "mlx"):
        expected = Noise(kind, 2**64 - 3).normal((20,))
        np.testing.assert_array_equal(Noise(kind, -3).normal((20,)), expected)


def test_an_unknown_generator_is_answered_with_all():
    with pytest.raises(UsageError) as caught:
        Noise("xorshift", 1)
    assert caught.value.hint == "choose from torch, cuda, numpy, mlx"
