import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import activations, llama

from macai.models.swiglu import fast_swiglu, sigmoid, swiglu


def test_sigmoid_is_that_of_float64_from_end_to_end():
    x = np.concatenate([np.linspace(-80, 80, 100_001), [0.0, -0.0, 1e-30, -1e-30]])
    x = x.astype(np.float32)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    ours = np.array(sigmoid(mx.array(x))).astype(np.float64)
    assert np.abs(ours / exact - 1).max() < 1e-5  # float32 rounds x itself: 80 * 6e-8
    near = np.abs(x) < 16
    assert np.abs(ours / exact - 1)[near].max() < 2e-6


def test_ends_beyond_float32_and_what_is_no_number_stay_what_they_are():
    x = mx.array([-1e30, 1e30, -mx.inf, mx.inf])
    assert np.allclose(np.array(sigmoid(x)), [0, 1, 0, 1], atol=1e-37)
    assert mx.isnan(sigmoid(mx.array([mx.nan]))).all().item()


def test_value_and_gradient_are_those_of_mlx():
    mx.random.seed(0)
    gate, x = mx.random.normal((64, 96)) * 4, mx.random.normal((64, 96))

    def total(function):
        return lambda g, x: (function(g, x) * mx.arange(96)).sum()

    plain = lambda g, x: nn.silu(g) * x  # noqa: E731
    assert mx.allclose(swiglu(gate, x), plain(gate, x), rtol=1e-5, atol=1e-6).item()
    ours = mx.grad(total(swiglu), argnums=(0, 1))(gate, x)
    theirs = mx.grad(total(plain), argnums=(0, 1))(gate, x)
    for a, b in zip(ours, theirs, strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-4).item()


def test_a_model_uses_it_only_meanwhile(tiny):
    ids = mx.arange(24).reshape(2, 12)
    before = tiny.model(ids)
    mx.eval(before)
    with fast_swiglu(tiny.model):
        assert (llama.swiglu is swiglu) == (mx.default_device() == mx.cpu)
        meanwhile = tiny.model(ids)
        mx.eval(meanwhile)
    assert llama.swiglu is activations.swiglu
    assert mx.allclose(before, meanwhile, rtol=1e-4, atol=1e-5).item()
    assert mx.array_equal(before, tiny.model(ids)).item()
