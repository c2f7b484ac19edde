import math

import mlx.core as mx
import mlx.nn as nn
import pytest

from tests.coreml.same import assert_same, lowered_graph, ops_of

X = mx.array([[-3.0, -0.5, 0.0, 0.5, 3.0]])


SCALE = math.sqrt(2 / math.pi)


def tanh_gelu(x, *, half=0.5, scale=SCALE, cubic=0.044715, power=3):
    return half * x * (1 + mx.tanh(scale * (x + cubic * x**power)))


@pytest.mark.parametrize(
    ("fn", "op"),
    [
        (nn.silu, "SiLU"),
        (lambda x: mx.sigmoid(x) * x, "SiLU"),
        (nn.gelu, "GELU"),
        (nn.gelu_approx, "GELU"),
        (tanh_gelu, "GELU"),
    ],
)
def test_an_activation_becomes_one_op(fn, op, tmp_path):
    assert ops_of(lowered_graph(fn, X)) == [op]
    assert_same(fn, X, path=tmp_path / "p.mlpackage")


def test_an_activation_in_float16_becomes_one_op():
    half = X.astype(mx.float16)
    assert ops_of(lowered_graph(nn.gelu, half)) == ["GELU"]
    assert ops_of(lowered_graph(nn.gelu_approx, half)) == ["GELU"]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: mx.sigmoid(x) * (x + 1),  # another factor
        lambda x: mx.sigmoid(2 * x) * x,
        lambda x: (lambda g: (g * x, g))(mx.sigmoid(x)),  # the gate is used again
        lambda x: x * (1 + mx.erf(x / math.sqrt(2))) / 3,
        lambda x: x * (1 + mx.erf(x / 1.5)) / 2,
        lambda x: x * (2 + mx.erf(x / math.sqrt(2))) / 2,
        lambda x: (x + 1) * (1 + mx.erf(x / math.sqrt(2))) / 2,
        lambda x: tanh_gelu(x, half=0.4),
        lambda x: tanh_gelu(x, scale=0.9),
        lambda x: tanh_gelu(x, cubic=0.05),
        lambda x: tanh_gelu(x, power=2),
        lambda x: 0.5 * x * (1 + mx.tanh(0.7978845608 * (2 * x + 0.044715 * x**3))),
        lambda x: 0.5 * (x + 1) * (1 + mx.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    ],
)
def test_what_is_almost_an_activation_stays(fn, tmp_path):
    assert not {"SiLU", "GELU"} & set(ops_of(lowered_graph(fn, X)))
    assert_same(fn, X, path=tmp_path / "p.mlpackage")
