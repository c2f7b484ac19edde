import gguf
import numpy as np
import pytest
from gguf import quants

from macai.models.gguf.blocks import TENSOR_TYPES, TYPE_NAMES, decode


def random_rows(name: str, n_rows: int, n_blocks: int) -> np.ndarray:
    """Random bytes whose float16 and float32 scales are all finite."""
    kind = TENSOR_TYPES[name]
    random = np.random.default_rng(len(name) + kind.bytes)
    if name == "F32":
        return random.standard_normal((n_rows, 256 * n_blocks), np.float32).view(np.uint8)
    if name in ("F16", "BF16"):
        high = random.integers(0, 0x7BFF, (n_rows, 256 * n_blocks), dtype=np.uint16)
        return (high | (random.integers(0, 2, high.shape, np.uint16) << 15)).view(np.uint8)
    rows = random.integers(0, 256, (n_rows, n_blocks, kind.bytes), dtype=np.uint8)
    scale_starts = {"Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208]}
    for at in scale_starts.get(name, [0, 2] if name.endswith(("_1", "4_K", "5_K")) else [0]):
        scales = random.standard_normal((n_rows, n_blocks, 1)).astype(np.float16)
        rows[:, :, at : at + 2] = scales.view(np.uint8)
    return rows.reshape(n_rows, -1)


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_each_type_decodes_to_the_bits_of_the_gguf_package(name: str) -> None:
    rows = random_rows(name, n_rows=48, n_blocks=5)
    ours = decode(rows, name)
    theirs = quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    assert np.isfinite(theirs).all()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_sizes_are_those_of_the_gguf_package(name: str) -> None:
    kind = TENSOR_TYPES[name]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (kind.size, kind.bytes)


def test_numbers_of_types_are_those_of_the_gguf_package() -> None:
    theirs = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    assert {n: name for n, name in TYPE_NAMES.items() if n in theirs} == theirs
