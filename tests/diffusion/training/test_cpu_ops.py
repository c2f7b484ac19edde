"""What training computes on a CPU is what MLX computes, with its gradient."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.diffusion.training.cpu_ops import attention, conv2d, cpu_ops, gelu, quick_gelu, silu
from macai.train.optimizer import joined
from tests.diffusion.training.small import models


@pytest.fixture(autouse=True)
def none_is_too_small(monkeypatch):
    monkeypatch.setattr("macai.diffusion.training.cpu_ops.LEAST", 1)


pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="of the CPU backend")


def close(ours, theirs, arguments, tolerance=2e-6):
    """Compare results and gradients, relative to the largest number."""

    def results(function):
        numbers = tuple(range(len(arguments)))
        made = function(*arguments)
        return made, *mx.grad(lambda *a: (function(*a) * weight).sum(), argnums=numbers)(*arguments)

    weight = mx.random.normal(theirs(*arguments).shape, key=mx.random.key(9))
    for own, wanted in zip(results(ours), results(theirs), strict=True):
        assert own.dtype == wanted.dtype
        assert mx.abs(own - wanted).max().item() <= tolerance * mx.abs(wanted).max().item() + 1e-30


@pytest.mark.parametrize(
    ("ours", "theirs"), [(silu, nn.silu), (gelu, nn.gelu), (quick_gelu, nn.gelu_fast_approx)]
)
def test_activations(ours, theirs):
    mx.random.seed(0)
    close(ours, theirs, [mx.random.normal((5, 7001)) * 3])
    far = mx.array([-1e4, -90.0, -20.0, -0.0, 20.0, 90.0, 1e4])
    close(ours, theirs, [far])
    assert mx.isfinite(mx.grad(lambda x: ours(x).sum())(far)).all()
    assert mx.isnan(ours(mx.array([float("nan")]))).all()
    half = far.astype(mx.float16)
    assert mx.array_equal(ours(half), theirs(half))


def test_few_numbers_are_left_to_mlx(monkeypatch):
    monkeypatch.setattr("macai.diffusion.training.cpu_ops.LEAST", 50)
    x = mx.random.normal((7, 7))
    assert mx.array_equal(gelu(x), nn.gelu(x))
    assert mx.array_equal(silu(x), nn.silu(x))
    q = x.reshape(1, 1, 7, 7)
    wanted = mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0)
    assert mx.array_equal(attention(q, q, q, scale=1.0), wanted)


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(spread, masked):
    mx.random.seed(0)
    q, k, v = (mx.random.normal((2, 3, n, 8)) for n in (5, 7, 7))
    mask = mx.where(mx.random.uniform(shape=(5, 7)) < 0.3, -1e4, 0.0) if masked else None

    def by(function):
        return lambda q, k, v: function(q * spread, k, v, scale=0.3, mask=mask)

    close(by(attention), by(mx.fast.scaled_dot_product_attention), [q, k, v], 1e-5)


def test_attention_that_is_not_computed_here_is_mlx_s():
    q = mx.random.normal((1, 4, 3, 8))
    k = mx.random.normal((1, 2, 3, 8))
    for options in ({"mask": "causal"}, {"mask": mx.ones((3, 3), mx.bool_)}):
        wanted = mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0, **options)
        assert mx.array_equal(attention(q, k, k, scale=1.0, **options), wanted)


@pytest.mark.parametrize("padding", [0, 1, (0, 1)])
@pytest.mark.parametrize("sides", [(8, 8), (7, 9)])
def test_convolutions_of_a_stride(padding, sides):
    mx.random.seed(0)
    x, weight = mx.random.normal((2, *sides, 3)), mx.random.normal((4, 3, 3, 3))
    close(
        lambda x, w: conv2d(x, w, 2, padding), lambda x, w: mx.conv2d(x, w, 2, padding), [x, weight]
    )
    for stride, dilation in ((1, 1), (3, 1), (2, 2)):
        ours = conv2d(x, weight, stride, padding, dilation, 1)
        assert mx.array_equal(ours, mx.conv2d(x, weight, stride, padding, dilation, 1))


def test_a_model_s_gradient_is_the_same_and_afterwards_all_is_as_before():
    made = models()
    unet, text = made.models["unet"], made.models["text_encoder"]
    x, ids = mx.random.normal((2, 8, 8, 4), key=mx.random.key(0)), mx.array([[512, 3, 4, 513]] * 2)
    holder = nn.Module()
    holder.unet, holder.text = unet, text

    def loss(model):
        hidden = model.text(ids).last_hidden_state
        return model.unet(x, mx.array([1.0, 900.0]), hidden).square().sum()

    wanted, theirs = nn.value_and_grad(holder, loss)(holder)
    before = (nn.silu, nn.gelu, mx.conv2d, mx.fast.scaled_dot_product_attention)
    held = unet.down_blocks[0].resnets[0]._activation
    with cpu_ops(holder):
        assert nn.silu is silu
        assert unet.down_blocks[0].resnets[0]._activation is silu
        assert text.text_model.encoder.layers[0].mlp._activation is quick_gelu
        value, ours = nn.value_and_grad(holder, loss)(holder)
    assert (nn.silu, nn.gelu, mx.conv2d, mx.fast.scaled_dot_product_attention) == before
    assert unet.down_blocks[0].resnets[0]._activation is held
    assert np.isclose(value.item(), wanted.item(), rtol=1e-5)
    a, b = joined(ours), joined(theirs)
    assert mx.linalg.norm(a - b).item() < 1e-5 * mx.linalg.norm(b).item()
