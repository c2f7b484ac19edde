import numpy as np
import pytest

from macai.coreml.few_values import packed, palette_of
from macai.mil.ops.compression import constexpr_lut_to_dense


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 64, 200, 256])
def test_a_weight_of_few_values_is_given_back_bit_for_bit(count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count).astype(np.float16)
    weight = values[rng.integers(count, size=(32, 16, 3, 3))]
    weight[0, 0, 0, :2] = [0.0, -0.0] if count < 200 else weight[0, 0, 0, :2]
    palette = palette_of(weight)
    assert palette is not None
    dense = palette.dense().astype(np.float16)
    assert np.array_equal(dense.view(np.uint16), weight.view(np.uint16))
    table = palette.tables.reshape(-1).astype(np.float16)
    again = constexpr_lut_to_dense(packed(palette), table, weight.shape)
    assert np.array_equal(again, weight)


def test_what_has_many_values_or_is_small_or_a_vector_is_none():
    rng = np.random.default_rng(0)
    assert palette_of(rng.normal(size=(64, 64)).astype(np.float16)) is None
    assert palette_of(np.zeros((16, 16), np.float16)) is None
    assert palette_of(np.zeros(4096, np.float16)) is None
    assert palette_of(np.zeros((64, 64), np.float32)) is None
    rare = np.zeros((256, 256), np.float16)
    rare[-2:] = rng.normal(size=(2, 256))
    assert palette_of(rare) is None
