"""Noise of kind torch is torch.randn's, drawn live."""

import numpy as np
import pytest

from macai.diffusion.random import Noise

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-6
SHAPES = [*((size,) for size in range(1, 101)), (16384,), (4, 64, 64), (1, 4, 33, 17), (65537,)]
SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**32 + 5, 2**63 + 17, 2**64 - 1, -1, -(2**63)]


@pytest.mark.parametrize("seed", SEEDS)
def test_many_draws_of_one_generator_are_torchs(seed):
    generator, noise = torch.Generator().manual_seed(seed), Noise("torch", seed)
    for shape in [*SHAPES, *SHAPES[30::-1]]:  # odd small sizes leave a number for the next call
        expected = torch.randn(shape, generator=generator).numpy()
        assert np.abs(noise.normal(shape) - expected).max() < TOLERANCE, shape


def test_ten_million_numbers_are_torchs():
    generator, noise = torch.Generator().manual_seed(7), Noise("torch", 7)
    for _ in range(10):
        expected = torch.randn(1_000_000, generator=generator).numpy()
        assert np.abs(noise.normal((1_000_000,)) - expected).max() < TOLERANCE
