import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.coreml.carried import AFFINE_BITS, FLOAT_MODES, affine, microscaled, unpack

GROUPS = (32, 64, 128)


def quantised(bits, group, dtype=mx.float32, seed=0):
    mx.random.seed(seed)
    weight = (0.05 * mx.random.normal((24, 256))).astype(dtype)
    return tuple(
        np.array(a.astype(mx.float32) if a.dtype == mx.bfloat16 else a)
        for a in mx.quantize(weight, group_size=group, bits=bits)
    )


def expanded_by_mlx(words, scales, biases, bits, group):
    arrays = (mx.array(words), mx.array(scales), mx.array(biases))
    return np.array(mx.dequantize(*arrays, group_size=group, bits=bits))


@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_codes_are_unpacked_as_mlx_does(bits, group):
    words, scales, _ = quantised(bits, group)
    codes = expanded_by_mlx(words, np.ones_like(scales), np.zeros_like(scales), bits, group)
    np.testing.assert_array_equal(unpack(words, bits), codes)


@given(
    bits=st.sampled_from(AFFINE_BITS),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_codes_packed_bit_by_bit_come_back(bits, rows, blocks, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 32 * blocks), dtype=np.uint8)
    spelt = (codes[..., None] >> np.arange(bits)) & 1
    words = np.packbits(spelt.reshape(rows, -1), axis=1, bitorder="little").view("<u4")
    np.testing.assert_array_equal(unpack(words, bits), codes)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_an_affine_weight_is_the_same_in_float32_and_rounded_once_in_float16(bits, dtype):
    words, scales, biases = quantised(bits, 64, dtype)
    exact = expanded_by_mlx(words, scales.astype(np.float32), biases.astype(np.float32), bits, 64)
    largest = np.abs(exact).max()
    stored = affine(words, scales, biases, bits, "fp32")
    np.testing.assert_allclose(stored.dense("fp32"), exact, atol=2e-7 * largest)
    stored = affine(words, scales, biases, bits, "fp16")
    np.testing.assert_allclose(stored.dense("fp16"), exact, atol=2**-9 * largest)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_offsets_are_whole_where_mlx_made_zero_a_code(bits):
    for dtype in (mx.float32, mx.float16):
        assert affine(*quantised(bits, 32, dtype), bits, "fp16").has_whole_offsets


def test_offsets_stay_floats_where_scales_were_trained():
    words, scales, biases = quantised(4, 32)
    stored = affine(words, scales, biases * np.float32(1.03), 4, "fp32")
    assert not stored.has_whole_offsets
    exact = expanded_by_mlx(words, scales, biases * np.float32(1.03), 4, 32)
    np.testing.assert_allclose(stored.dense("fp32"), exact, atol=1e-7)


@pytest.mark.parametrize("mil_type", ["fp16", "fp32"])
@pytest.mark.parametrize(("scale", "bias"), [(0, 0), (0, 0.3), (0, -7), (-1e-7, 0.3), (1e-5, -9)])
def test_a_group_of_one_value_keeps_it(scale, bias, mil_type):
    words, scales, biases = quantised(8, 32)
    scales[3, 2], biases[3, 2] = scale, bias
    exact = expanded_by_mlx(words, scales, biases, 8, 32)
    dense = affine(words, scales, biases, 8, mil_type).dense(mil_type)
    assert np.isfinite(dense).all()
    place = np.s_[3, 64:96]
    tolerance = 2**-10 if mil_type == "fp16" else 2**-22
    np.testing.assert_allclose(dense[place], exact[place], rtol=tolerance)
    rest = np.abs(dense - exact)
    rest[place] = 0
    assert rest.max() < 2**-9 * np.abs(exact).max()


@pytest.mark.parametrize("mode", FLOAT_MODES)
def test_microscaled_floats_are_the_same(mode):
    bits, powers = FLOAT_MODES[mode]
    group = 32 if powers else 16
    mx.random.seed(1)
    arrays = mx.quantize(mx.random.normal((8, 128)), group_size=group, bits=bits, mode=mode)
    exact = mx.dequantize(*arrays, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
    stored = microscaled(*(np.array(a) for a in arrays), mode)
    np.testing.assert_array_equal(stored.dense("fp16"), np.array(exact))
    assert stored.size_bytes() == 8 * 128 * bits // 8 + 2 * (2**bits + 8 * 128 // group)
