"""Autoencoders beside diffusers' own: tiny ones, tiles, and the full-size one (long)."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.models import from_config
from macai.diffusion.models.tiling import blend_tiles, decode_tiled, encode_tiled
from macai.diffusion.models.vae import DiagonalGaussian
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import KL, VAE_CONFIGS, image, loaded, psnr
from tests.diffusion.models.text_vae_oracle import autoencoder, decoded, encoded, nchw

pytestmark = pytest.mark.oracle

FULL_SIZE = KL | {
    "block_out_channels": [128, 256, 512, 512],
    "norm_num_groups": 32,
    "sample_size": 512,
}
PARAMETERS = 83_653_863


def assert_same(config, pictures: np.ndarray, *, least: float) -> None:
    theirs, weights = autoencoder(config)
    ours = loaded(from_config(config), weights)
    wanted, found = encoded(theirs, pictures), ours.encode(mx.array(pictures))
    latents = wanted["mean"]
    if isinstance(found, DiagonalGaussian):
        ratios = {"mean": psnr(found.mean, latents), "logvar": psnr(found.logvar, wanted["logvar"])}
    else:
        ratios = {"latents": psnr(found, latents)}
    ratios["image"] = psnr(ours.decode(mx.array(latents)), decoded(theirs, latents))
    print({k: round(v, 1) for k, v in ratios.items()})
    assert {k: v for k, v in ratios.items() if v < least} == {}


@pytest.mark.parametrize(("height", "width"), [(40, 24), (8, 56)])
@pytest.mark.parametrize("kind", VAE_CONFIGS)
def test_a_tiny_autoencoder_computes_what_diffusers_does(kind, height, width):
    assert_same(VAE_CONFIGS[kind], image(height, width, batch=2), least=115)


def test_a_size_between_multiples_of_eight_computes_what_diffusers_does():
    assert_same(VAE_CONFIGS["sd"], image(29, 43), least=115)


def test_the_divergence_is_diffusers():
    import torch

    theirs, weights = autoencoder(VAE_CONFIGS["sd"])
    pictures = image(16, 24, batch=3)
    with torch.no_grad():
        wanted = theirs.encode(nchw(pictures)).latent_dist.kl().numpy()
    found = loaded(from_config(VAE_CONFIGS["sd"]), weights).encode(mx.array(pictures)).kl()
    assert np.allclose(np.array(found), wanted, rtol=1e-5)


def tiled(config, tile: int):
    """Return diffusers' model with tiles of so many latents, and ours."""
    theirs, weights = autoencoder(config | {"sample_size": tile * 8})
    theirs.enable_tiling()
    assert theirs.tile_latent_min_size == tile
    return theirs, loaded(from_config(config), weights)


def diffusers_tiles(length: int, tile: int) -> list[tuple[int, int]]:
    """Return where diffusers cuts: a tile every three quarters of one, the last ones shorter."""
    return [(start, min(start + tile, length)) for start in range(0, length, tile * 3 // 4)]


@pytest.mark.parametrize(("height", "width"), [(5, 17), (14, 6)])
def test_tiles_where_diffusers_has_them_give_the_picture_diffusers_gives(height, width):
    theirs, ours = tiled(VAE_CONFIGS["sd"], 8)
    z = np.random.default_rng(0).standard_normal((1, height, width, 4)).astype(np.float32)
    rows, columns = diffusers_tiles(height, 8), diffusers_tiles(width, 8)
    found = blend_tiles(ours.decode, mx.array(z), rows, columns, out_scale=8)
    assert psnr(found, decoded(theirs, z)) > 110


@pytest.mark.parametrize(("height", "width"), [(40, 136), (112, 48)])
def test_tiles_where_diffusers_has_them_give_the_latents_diffusers_gives(height, width):
    theirs, ours = tiled(VAE_CONFIGS["sd"], 8)
    x = image(height, width)
    rows, columns = diffusers_tiles(height // 8, 8), diffusers_tiles(width // 8, 8)
    moments = blend_tiles(ours.moments, mx.array(x), rows, columns, in_scale=8)
    assert psnr(DiagonalGaussian.from_moments(moments).mean, encoded(theirs, x)["mean"]) > 110


def test_only_where_four_tiles_meet_is_the_picture_not_diffusers():
    theirs, ours = tiled(VAE_CONFIGS["sd"], 8)
    z = np.random.default_rng(0).standard_normal((1, 12, 12, 4)).astype(np.float32)
    spans = diffusers_tiles(12, 8)
    found = np.array(blend_tiles(ours.decode, mx.array(z), spans, spans, out_scale=8))
    wanted = decoded(theirs, z)
    blended = np.zeros(96, bool)
    for before, after in pairwise(spans):
        blended[after[0] * 8 : before[1] * 8] = True
    corners = blended[:, None] & blended
    # There diffusers blends what it has blended with the left already a second time.
    assert psnr(found[:, ~corners], wanted[:, ~corners]) > 110
    assert 20 < psnr(found[:, corners], wanted[:, corners]) < 60


def test_even_tiles_are_closer_to_the_whole_picture_than_diffusers_tiles():
    theirs, ours = tiled(VAE_CONFIGS["sd"], 8)
    x = image(104, 104)
    z = encoded(theirs, x)["mean"]
    whole = np.array(ours.decode(mx.array(z)))
    assert psnr(decode_tiled(ours, mx.array(z), tile=8), whole) > psnr(decoded(theirs, z), whole)
    latents = np.array(ours.encode(mx.array(x)).mean)
    closer = psnr(encode_tiled(ours, mx.array(x), tile=8).mean, latents)
    assert closer > psnr(encoded(theirs, x)["mean"], latents)


@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
def test_the_autoencoder_of_full_size_computes_what_diffusers_does(changes):
    assert_same(FULL_SIZE | changes, image(256, 256), least=115)


def test_the_autoencoder_of_full_size_has_as_many_parameters_as_the_files():
    parameters = named_arrays(from_config(FULL_SIZE).parameters())
    assert sum(array.size for array in parameters.values()) == PARAMETERS
