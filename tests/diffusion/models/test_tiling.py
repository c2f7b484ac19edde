"""Autoencoders tile by tile: where tiles lie, how they are blended, and what stays the same."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.diffusion.models import from_config
from macai.diffusion.models.tiling import (
    blend_tiles,
    blend_weights,
    decode_tiled,
    encode_tiled,
    intervals,
    one_at_a_time,
)
from macai.errors import UsageError
from tests.diffusion.models.text_vae_cases import TINY, VAE_CONFIGS, image, with_random_weights


def latents(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(1))


@given(length=st.integers(1, 300), tile=st.integers(1, 80), data=st.data())
def test_intervals_cover_all_evenly_with_no_less_overlap_than_asked_for(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    spans = intervals(length, tile, overlap)
    assert (spans[0][0], spans[-1][1]) == (0, length)
    assert {stop - start for start, stop in spans} == {min(tile, length)}
    gaps = [after[0] - before[0] for before, after in pairwise(spans)]
    assert all(0 < gap <= tile - overlap for gap in gaps)
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    # With one interval fewer, some neighbours would share too little.
    assert len(spans) == 1 or length - tile > (len(spans) - 2) * (tile - overlap)


@given(length=st.integers(1, 200), tile=st.integers(1, 60), data=st.data())
def test_shares_of_a_pixel_sum_to_one_and_change_in_small_steps(length, tile, data):
    overlap = data.draw(st.integers(0, tile // 2))
    scale = data.draw(st.integers(1, 3))
    spans = intervals(length, tile, overlap)
    total = np.zeros(length * scale)
    for (start, stop), share in zip(spans, blend_weights(spans, scale), strict=True):
        total[start * scale : stop * scale] += share
        if overlap:
            step = np.abs(np.diff(share)).max(initial=0)
            assert step <= 2 / (overlap * scale) + 1e-6  # twice: one may rise as another does
    assert np.allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("overlap", [-1, 8])
def test_an_overlap_of_a_tile_or_none_at_all_is_an_error(overlap):
    with pytest.raises(ValueError, match=r"must be in \[0, 8\)"):
        intervals(20, 8, overlap)


def test_tiles_that_do_not_change_are_put_back_together():
    x = mx.array(image(40, 56, batch=2))
    rows, columns = intervals(20, 8, 3), intervals(28, 8, 0)
    same = blend_tiles(lambda t: t, x, rows, columns, in_scale=2, out_scale=2)
    assert mx.allclose(same, x, atol=1e-6)


def test_tiles_that_differ_have_no_seam_between_them():
    shades = iter(range(100))
    flat = blend_tiles(
        lambda t: mx.full((1, *t.shape[1:]), float(next(shades) % 2)),
        mx.zeros((1, 40, 40, 1)),
        intervals(40, 16, 8),
        intervals(40, 16, 8),
    )
    picture = np.array(flat)[0, :, :, 0]
    for axis in (0, 1):
        assert np.abs(np.diff(picture, axis=axis)).max() <= 1 / 8 + 1e-6
    assert (picture.min(), picture.max()) == (0, 1)


def test_all_tiles_have_one_shape():
    vae, shapes = from_config(VAE_CONFIGS["f4"]), set()
    decode = vae.decode
    vae.decode = lambda z: shapes.add(z.shape) or decode(z)
    assert decode_tiled(vae, latents(1, 7, 11, 4), tile=4).shape == (1, 28, 44, 3)
    assert shapes == {(1, 4, 4, 4)}


@pytest.mark.parametrize("kind", ["sd", "f4", "taesd"])
def test_one_tile_is_exactly_the_plain_picture(kind):
    vae = with_random_weights(from_config(VAE_CONFIGS[kind]))
    z = latents(2, 3, 4, 4)
    assert mx.array_equal(decode_tiled(vae, z, tile=4), vae.decode(z))


def test_one_tile_is_exactly_the_plain_latents():
    vae = with_random_weights(from_config(VAE_CONFIGS["sd"]))
    x = mx.array(image(24, 32))
    tiled, plain = encode_tiled(vae, x, tile=4), vae.encode(x)
    assert mx.array_equal(tiled.mean, plain.mean)
    assert mx.array_equal(tiled.logvar, plain.logvar)


def test_pixels_further_from_other_tiles_than_convolutions_reach_are_the_plain_ones():
    vae = with_random_weights(from_config(TINY | {"num_decoder_blocks": [1, 1, 1, 1]}))
    z = latents(1, 44, 44, 4)
    tiled, plain = decode_tiled(vae, z, tile=28, overlap=12), vae.decode(z)
    assert intervals(44, 28, 12) == [(0, 28), (16, 44)]
    error = np.abs(np.array(tiled - plain)).max(axis=(0, 3))
    alone = np.ones(44 * 8, bool)
    alone[16 * 8 : 28 * 8] = False
    assert error[alone][:, alone].max() < 1e-5
    assert error[~alone][:, alone].max() > 1e-3


def test_where_two_tiles_both_see_enough_their_blend_is_the_plain_picture():
    # 1 + 3 convolutions at the latents' size, 4 at twice that, 4 at four times, 5 at eight times.
    reach = 8  # at least 4 + 4 / 2 + 4 / 4 + 5 / 8 latents
    vae = with_random_weights(from_config(TINY | {"num_decoder_blocks": [1, 1, 1, 1]}))
    z = latents(1, 6, 60, 4)
    tiled, plain = decode_tiled(vae, z, tile=40, overlap=20), vae.decode(z)
    error = np.abs(np.array(tiled - plain)).max(axis=(0, 1, 3))
    assert intervals(60, 40, 20) == [(0, 40), (20, 60)]
    assert error[(20 + reach) * 8 : (40 - reach) * 8].max() < 1e-5
    assert error[20 * 8 : (20 + reach) * 8].max() > 1e-4


def test_tiled_latents_are_close_to_the_plain_ones():
    vae = with_random_weights(from_config(VAE_CONFIGS["no-attention"]))
    x = mx.array(image(64, 96))
    tiled, plain = encode_tiled(vae, x, tile=6), vae.encode(x)
    assert tiled.mean.shape == plain.mean.shape == (1, 8, 12, 4)
    for found, wanted in ((tiled.mean, plain.mean), (tiled.logvar, plain.logvar)):
        assert (
            np.corrcoef(np.array(found).ravel(), np.array(wanted).ravel())[0, 1] > 0.8
        )  # tiles put elsewhere: 0


def test_an_image_that_is_no_whole_number_of_latents_is_refused():
    with pytest.raises(UsageError, match="an image of 65x64 pixels cannot") as caught:
        encode_tiled(from_config(VAE_CONFIGS["sd"]), mx.zeros((1, 64, 65, 3)))
    assert caught.value.hint == "both sides must be multiples of 8"


def test_a_half_precision_picture_keeps_its_type():
    vae = from_config(TINY)
    vae.set_dtype(mx.float16)
    z = latents(1, 12, 6, 4).astype(mx.float16)
    assert decode_tiled(vae, z, tile=8).dtype == mx.float16


def test_a_batch_one_at_a_time_is_the_batch():
    vae = with_random_weights(from_config(VAE_CONFIGS["sd"]))
    z, seen = latents(3, 2, 3, 4), []

    def decode(row: mx.array) -> mx.array:
        seen.append(row.shape[0])
        return vae.decode(row)

    assert mx.allclose(one_at_a_time(decode, z), vae.decode(z), atol=1e-5)
    assert seen == [1, 1, 1]


def test_tiles_need_less_memory_than_the_whole():
    vae = with_random_weights(from_config(VAE_CONFIGS["sd"]))
    z = latents(1, 16, 16, 4)

    def peak(decode) -> int:
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(decode())
        return mx.get_peak_memory() - before

    tiled = peak(lambda: decode_tiled(vae, z, tile=8, overlap=0))
    assert tiled < peak(lambda: vae.decode(z)) / 2
