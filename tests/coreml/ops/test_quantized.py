import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml import export
from macai.coreml.carried import AFFINE_BITS
from macai.mil import open_package

FORMATS = [("affine", bits, group) for bits in AFFINE_BITS for group in (32, 64, 128)]
FORMATS += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


class Tied(nn.Module):
    """One weight, quantised, whose rows are read and that is the head."""

    def __init__(self, mode="affine", bits=4, group=32):
        super().__init__()
        table = nn.Embedding(32, 128)
        self.table = table.to_quantized(group, bits, mode)

    def __call__(self, indices):
        return self.table.as_linear(self.table(indices).astype(mx.float32))

    def dense(self):
        table = self.table
        return np.array(
            mx.dequantize(
                table.weight,
                table.scales,
                table.get("biases"),
                group_size=table.group_size,
                bits=table.bits,
                mode=table.mode,
            ).astype(mx.float32)
        )


def run(path, **inputs):
    return open_package(path).functions["main"].run(inputs).outputs["output"]


@pytest.mark.parametrize(("mode", "bits", "group"), FORMATS)
def test_rows_and_products_are_those_of_the_quantised_weight(mode, bits, group, tmp_path):
    mx.random.seed(0)
    model = Tied(mode, bits, group)
    path = export(
        model, {"indices": mx.zeros((5,), mx.int32)}, tmp_path / "a.mlpackage", precision="fp32"
    ).path
    indices, weight = np.array([0, 31, 7, 7, 12], dtype=np.int32), model.dense()
    expected = weight[indices] @ weight.T
    result = run(path, indices=indices)
    np.testing.assert_allclose(result, expected, atol=2e-6 * np.abs(expected).max())


def test_a_tied_weight_is_stored_once_as_it_was(tmp_path):
    mx.random.seed(0)
    path = export(Tied(), {"indices": mx.zeros((5,), mx.int32)}, tmp_path / "a.mlpackage").path
    weight = 32 * 128
    # Codes of 4 bits; for each 32 a scale of 16 bits and an offset of 4; headers of 64 bytes.
    assert open_package(path).weight_bytes - (weight // 2 + weight // 32 * 5 // 2) < 1024


def test_functions_share_a_quantised_weight(tmp_path):
    mx.random.seed(0)
    model, sizes = Tied(), []
    for names in (("main",), ("main", "two")):
        shapes = {n: {"indices": mx.zeros((i + 2,), mx.int32)} for i, n in enumerate(names)}
        path = tmp_path / f"{len(names)}.mlpackage"
        export(model, {}, path, functions=shapes)
        sizes.append(open_package(path).weight_bytes)
    assert sizes[1] - sizes[0] < 256  # small constants have no names


@pytest.mark.parametrize("transpose", [True, False])
def test_float16_programs_round_no_more_than_scales(transpose, tmp_path):
    mx.random.seed(0)
    packed = mx.quantize(mx.random.normal((64, 64)), group_size=32, bits=4)
    mx.eval(packed)

    def product(x):
        return mx.quantized_matmul(x, *packed, transpose=transpose, group_size=32, bits=4)

    x = mx.random.normal((3, 64))
    path = export(product, {"x": x}, tmp_path / "a.mlpackage").path
    weight = np.array(mx.dequantize(*packed, group_size=32, bits=4))
    expected = np.array(x) @ (weight.T if transpose else weight)
    np.testing.assert_allclose(run(path, x=np.array(x)), expected, atol=1e-2)


def test_a_quantised_layer_keeps_its_bias(tmp_path):
    mx.random.seed(0)
    layer = nn.QuantizedLinear(64, 8, group_size=32, bits=8)
    layer.bias = mx.arange(8, dtype=mx.float32)
    x = mx.random.normal((2, 3, 64))
    path = export(layer, {"x": x}, tmp_path / "a.mlpackage", precision="fp32").path
    np.testing.assert_allclose(run(path, x=np.array(x)), np.array(layer(x)), atol=1e-5)
