import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.models.dora import DoRALinear
from macai.models.load import dense_weight

OPTIONS = {"rank": 4, "scale": 1.5, "dropout": 0.0, "key": mx.random.key(0)}
BASES = [(bits, "affine") for bits in (2, 3, 4, 5, 6, 8)] + [(4, "mxfp4")]


def quantised(bits, mode, *, bias=False):
    linear = nn.Linear(192, 48, bias=bias)
    size = 32 if mode == "mxfp4" else 64
    return nn.QuantizedLinear.from_linear(linear, group_size=size, bits=bits, mode=mode)


def changed(layer):
    """Give B and the lengths other numbers, as training would."""
    layer["lora_B"] = mx.random.normal(layer.lora_B.shape, key=mx.random.key(1))
    change = mx.random.uniform(0.5, 2.0, (48,), key=mx.random.key(2))
    layer["lora_magnitude_vector"] = layer.lora_magnitude_vector * change
    return layer


def by_numpy(layer, x):
    """y = m (W + s B A) / |W + s B A| x, with the sum as it stands in the paper, in float64."""
    a, b, m = (
        np.array(layer[n], np.float64) for n in ("lora_A", "lora_B", "lora_magnitude_vector")
    )
    weight = np.array(dense_weight(layer.linear), np.float64) + layer.scale * b @ a
    direction = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    bias = np.array(layer.linear.bias, np.float64) if "bias" in layer.linear else 0
    return np.array(x, np.float64) @ (m[:, None] * direction).T + bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("bits", "mode"), BASES)
def test_on_a_base_of_any_width_it_is_the_formula_of_the_paper(bits, mode, bias):
    layer = changed(DoRALinear(quantised(bits, mode, bias=bias), **OPTIONS))
    x = mx.random.normal((5, 192), key=mx.random.key(3))
    expected = by_numpy(layer, x)
    assert np.abs(np.array(layer(x)) - expected).max() < 1e-4 * np.abs(expected).max()
    merged = np.array(x) @ np.array(layer.merged_weight()).T
    merged += np.array(layer.linear.bias) if bias else 0
    assert np.abs(merged - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "mode"), BASES)
def test_a_new_one_changes_nothing_bit_for_bit(bits, mode):
    linear = quantised(bits, mode)
    x = mx.random.normal((5, 192), key=mx.random.key(3))
    assert mx.array_equal(DoRALinear(linear, **OPTIONS)(x), linear(x)).item()


def test_a_row_of_zeros_stays_one():
    linear = nn.Linear(192, 48, bias=False)
    linear.weight = mx.where(mx.arange(48)[:, None] == 3, 0, linear.weight)
    layer = DoRALinear(linear, **OPTIONS)
    y = layer(mx.ones((1, 192)))
    assert mx.isfinite(y).all().item()
    assert y[0, 3].item() == 0


def test_the_base_stays_as_it_is():
    linear = nn.Linear(192, 48)
    linear.set_dtype(mx.float16)
    before = linear.weight
    layer = DoRALinear(linear, **OPTIONS)
    layer.merged_weight()
    assert linear.weight is before
    assert layer(mx.zeros((1, 192), mx.float16)).dtype == mx.float16


def test_no_gradient_goes_through_the_norm():
    """The length of B is no direction: with the norm in the gradient, <grad B, B> would be 0."""
    layer = changed(DoRALinear(nn.Linear(192, 48, bias=False), **OPTIONS))
    x, slope = (mx.random.normal(s, key=mx.random.key(4)) for s in ((7, 192), (7, 48)))

    def loss(b, m):
        layer.lora_B, layer.lora_magnitude_vector = b, m
        return (layer(x) * slope).sum()

    b, m = layer.lora_B, layer.lora_magnitude_vector
    grads = mx.grad(loss, argnums=(0, 1))(b, m)
    layer.lora_B, layer.lora_magnitude_vector = b, m
    a, b, m = (np.array(v, np.float64) for v in (layer.lora_A, b, m))
    weight = np.array(layer.linear.weight, np.float64) + layer.scale * b @ a
    norm = np.linalg.norm(weight, axis=1)
    back = np.array(slope, np.float64).T @ np.array(x, np.float64)
    expected = layer.scale * (m / norm)[:, None] * back @ a.T, (back * weight).sum(1) / norm
    for ours, theirs in zip(grads, expected, strict=True):
        assert np.abs(np.array(ours) - theirs).max() < 1e-4 * np.abs(theirs).max()
