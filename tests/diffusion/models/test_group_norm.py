"""Group norm is exact where MLX's own is not, and the same module to everyone else."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.diffusion.models import from_config
from macai.diffusion.models.group_norm import GroupNorm, use_exact_norms
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import VAE_CONFIGS, psnr


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)


def normed(x: np.ndarray, groups: int, eps: float) -> np.ndarray:
    grouped = x.astype(np.float64).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape)


@pytest.mark.parametrize("shape", [(2, 9, 7, 24), (2, 63, 24), (1, 256, 256, 16)])
def test_a_feature_map_is_normed_as_exactly_as_float32_can(shape):
    norm, x = GroupNorm(8, shape[-1], 1e-6), picture(*shape)
    norm.weight, norm.bias = mx.random.normal((shape[-1],)), mx.random.normal((shape[-1],))
    wanted = normed(x, 8, 1e-6) * np.array(norm.weight) + np.array(norm.bias)
    assert psnr(norm(mx.array(x)), wanted) > 130


def test_the_epsilon_counts():
    x = picture(1, 4, 4, 8) / 100
    assert psnr(GroupNorm(2, 8, 0.1)(mx.array(x)), normed(x, 2, 0.1)) > 130


def test_half_precision_is_normed_in_float32():
    x = picture(1, 8, 8, 16).astype(np.float16) * 500  # whose squares float16 does not hold
    norm = GroupNorm(4, 16, 1e-6)
    norm.set_dtype(mx.float16)
    found = norm(mx.array(x))
    assert found.dtype == mx.float16
    assert psnr(found.astype(mx.float32), normed(x.astype(np.float32), 4, 1e-6)) > 70


def test_its_gradient_is_that_of_mlx():
    x, weights = mx.array(picture(2, 5, 4, 8)), mx.array(picture(2, 5, 4, 8)[::-1] ** 2)
    ours, theirs = GroupNorm(2, 8, 1e-6), nn.GroupNorm(2, 8, 1e-6, pytorch_compatible=True)
    found, wanted = (mx.grad(lambda a, n=n: (n(a) * weights).sum())(x) for n in (ours, theirs))
    assert psnr(found, np.array(wanted)) > 100


def test_all_norms_of_an_autoencoder_are_exact():
    model = from_config(VAE_CONFIGS["sd"])
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert {type(n) for n in norms} == {GroupNorm}
    assert {n.eps for n in norms} == {1e-6}


def test_a_norm_that_is_replaced_keeps_its_parameters():
    model = nn.Sequential(nn.GroupNorm(2, 4, pytorch_compatible=True), nn.GroupNorm(2, 4))
    model.layers[0].weight = mx.arange(4.0)
    before = named_arrays(model.parameters())
    use_exact_norms(model)
    assert [type(layer) for layer in model.layers] == [GroupNorm, nn.GroupNorm]
    after = named_arrays(model.parameters())
    assert after.keys() == before.keys()
    assert all(mx.array_equal(after[n], a) for n, a in before.items())
