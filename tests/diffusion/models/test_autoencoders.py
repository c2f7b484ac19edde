"""Autoencoders compute what diffusers' do (goldens), and refuse what they do not know."""

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.models import from_config
from macai.diffusion.models.vae import DiagonalGaussian
from macai.errors import ModelError
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import (
    KL,
    TINY,
    VAE_CONFIGS,
    image,
    psnr,
    with_random_weights,
)

GOLDENS = Path(__file__).parents[2] / "goldens" / "diffusion_vae.npz"


@cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("kind", VAE_CONFIGS)
def test_an_autoencoder_computes_what_diffusers_does(kind):
    model = with_random_weights(from_config(VAE_CONFIGS[kind]))
    wanted = {k.partition("/")[2]: v for k, v in goldens().items() if k.startswith(kind + "/")}
    latents = model.encode(mx.array(image(24, 40)))
    if isinstance(latents, DiagonalGaussian):
        assert psnr(latents.logvar, wanted["logvar"]) > 115  # with norms' eps 1e-5: 105
        latents = latents.mean
    assert psnr(latents, wanted["mean"]) > 115
    assert psnr(model.decode(mx.array(wanted["mean"])), wanted["image"]) > 115


def test_log_variances_are_clamped():
    moments = mx.array([[[[1.0, 2.0, -31.0, 21.0]]]])
    distribution = DiagonalGaussian.from_moments(moments)
    assert distribution.mean.tolist() == [[[[1.0, 2.0]]]]
    assert distribution.logvar.tolist() == [[[[-30.0, 20.0]]]]


def test_a_sample_is_the_mean_and_noise_as_wide_as_the_deviation():
    mean, noise = mx.random.normal((1, 2, 2, 4)), mx.random.normal((1, 2, 2, 4))
    distribution = DiagonalGaussian(mean, mx.full(mean.shape, 2 * np.log(3.0)))
    assert mx.array_equal(distribution.mode(), mean)
    assert mx.allclose(distribution.sample(noise), mean + 3 * noise, atol=1e-5)


def test_the_divergence_is_that_of_the_closed_form():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(2, 3, 3, 4)), rng.uniform(0.5, 2, (2, 3, 3, 4))
    found = DiagonalGaussian(mx.array(mean), mx.array(2 * np.log(std))).kl()
    wanted = (-np.log(std) + (std**2 + mean**2) / 2 - 0.5).sum(axis=(1, 2, 3))
    assert np.allclose(np.array(found), wanted, rtol=1e-5)


def test_both_halves_pass_gradients_to_every_parameter():
    model = with_random_weights(from_config(VAE_CONFIGS["f4"]))
    x = mx.array(image(16, 16))

    def loss(parameters):
        model.update(parameters)
        distribution = model.encode(x)
        return (model.decode(distribution.mean) - x).square().mean() + distribution.kl().mean()

    gradients = named_arrays(mx.grad(loss)(model.trainable_parameters()))
    # A bias before a softmax over keys shifts all scores alike.
    silent = [n for n, g in gradients.items() if not mx.abs(g).max() > 0]
    assert len(gradients) == len(named_arrays(model.parameters()))
    assert [n for n in silent if not n.endswith("to_k.bias")] == []


@pytest.mark.parametrize(
    ("kind", "there"),
    [
        ("sd", "encoder.down_blocks.0.resnets.0.conv1.weight"),
        ("sd", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
        ("sd", "encoder.down_blocks.2.downsamplers.0.conv.bias"),
        ("sd", "decoder.mid_block.attentions.0.to_out.0.weight"),
        ("sd", "decoder.mid_block.attentions.0.group_norm.weight"),
        ("sd", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
        ("sd", "post_quant_conv.bias"),
        ("taesd", "encoder.layers.2.weight"),
        ("taesd", "decoder.layers.3.conv.4.bias"),
    ],
)
def test_parameters_have_diffusers_names(kind, there):
    assert there in named_arrays(from_config(VAE_CONFIGS[kind]).parameters())


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("no-quant-conv", "quant_conv"),
        ("no-quant-conv", "post_quant_conv"),
        ("no-attention", "encoder.mid_block.attentions"),
        ("sd", "encoder.down_blocks.3.downsamplers"),
        ("sd", "decoder.up_blocks.3.upsamplers"),
    ],
)
def test_what_the_config_leaves_out_has_no_parameters(kind, prefix):
    names = named_arrays(from_config(VAE_CONFIGS[kind]).parameters())
    assert not [n for n in names if n.startswith(prefix)]


def test_the_config_keeps_how_latents_are_scaled():
    config = from_config(
        KL | {"latents_mean": [0.1] * 4, "latents_std": [2] * 4, "shift_factor": 0.1}
    ).config
    assert (config.scaling_factor, config.shift_factor) == (0.18215, 0.1)
    assert (config.latents_mean, config.latents_std) == ((0.1,) * 4, (2,) * 4)
    assert config.spatial_scale_factor == 8
    assert from_config(VAE_CONFIGS["f4"]).config.spatial_scale_factor == 4
    assert from_config(TINY).config.spatial_scale_factor == 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (KL | {"act_fn": "relu"}, "act_fn = 'relu' is not supported"),
        (
            KL | {"down_block_types": ["AttnDownEncoderBlock2D"] * 4},
            r"down_block_types = \['AttnDownEncoderBlock2D'",
        ),
        (KL | {"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 entries"),
        (KL | {"norm_num_groups": 12}, "not all multiples of norm_num_groups 12"),
        (KL | {"block_out_channels": "64"}, "block_out_channels is '64'"),
        (TINY | {"act_fn": "elu"}, "act_fn = 'elu' is not supported"),
        (TINY | {"upsample_fn": "bilinear"}, "upsample_fn = 'bilinear' is not supported"),
        (TINY | {"upsampling_scaling_factor": 3}, "upsampling_scaling_factor = 3"),
        (TINY | {"decoder_block_out_channels": [8, 8, 16, 8]}, r"\[8, 8, 16, 8\]"),
        (TINY | {"num_encoder_blocks": [1, 3]}, r"num_encoder_blocks = \[1, 3\]"),
    ],
)
def test_what_cannot_be_computed_is_named(config, message):
    with pytest.raises(ModelError, match=message):
        from_config(config)
