import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import quants

from macai.models.gguf import affine
from macai.models.gguf.blocks import TENSOR_TYPES

TYPES = sorted(affine.BITS)


def random_rows(name: str, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(3)
    rows = random.integers(0, 256, (24, 5, TENSOR_TYPES[name].bytes), dtype=np.uint8)
    for at in (0, 2) if name == "Q4_1" else (0,):
        scales = (random.standard_normal((24, 5, 1)) * scale).astype(np.float16)
        rows[:, :, at : at + 2] = scales.view(np.uint8)
    return rows.reshape(24, -1)


def dequantised_by_mlx(rows: np.ndarray, name: str, dtype: type) -> np.ndarray:
    scales, biases = (
        affine.scales(rows, name).astype(dtype),
        affine.biases(rows, name).astype(dtype),
    )
    return np.array(
        mx.dequantize(
            mx.array(affine.packed_weight(rows, name)),
            mx.array(scales).astype(mx.float32),
            mx.array(biases).astype(mx.float32),
            group_size=affine.GROUP_SIZE,
            bits=affine.BITS[name],
        )
    )


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 100.0])
def test_mlx_dequantises_to_the_numbers_of_the_gguf_package(name: str, scale: float) -> None:
    rows = random_rows(name, scale)
    theirs = quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    assert affine.fits_float16(rows, name)
    np.testing.assert_array_equal(dequantised_by_mlx(rows, name, np.float16), theirs)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_a_bias_beyond_float16_is_found_and_is_exact_in_float32(name: str) -> None:
    rows = random_rows(name, scale=1.5e4)
    theirs = quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    assert not affine.fits_float16(rows, name)
    np.testing.assert_array_equal(dequantised_by_mlx(rows, name, np.float32), theirs)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_the_largest_scale_that_fits_is_the_last_below_infinity(name: str) -> None:
    rows = np.zeros((1, TENSOR_TYPES[name].bytes), np.uint8)
    largest = np.float16(65504 / affine.ZERO_POINTS[name])
    for scale, fits in ((largest, True), (np.nextafter(largest, np.float16(np.inf)), False)):
        rows[0, :2] = np.array([-scale], np.float16).view(np.uint8)
        assert affine.fits_float16(rows, name) is fits
        with np.errstate(over="ignore"):
            assert np.isfinite(affine.biases(rows, name).astype(np.float16)).all() == fits
