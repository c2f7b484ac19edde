"""Autoencoders in less memory: large images tile by tile, batches one image at a time.

An image is cut into tiles that overlap, and where they do their results are blended linearly. All
tiles have one size, so none has the statistics of a narrow strip. A result is not the plain one:
norms and attention see a tile only.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from macai.diffusion.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from macai.diffusion.models.autoencoder_tiny import AutoencoderTinyConfig
from macai.diffusion.models.vae import DiagonalGaussian
from macai.errors import UsageError

Interval = tuple[int, int]


class Decodes(Protocol):
    """AutoencoderKL or AutoencoderTiny."""

    @property
    def config(self) -> AutoencoderKLConfig | AutoencoderTinyConfig: ...

    def decode(self, z: mx.array) -> mx.array:
        """[B, h, w, C] -> [B, H, W, 3]."""


def decode_tiled(
    vae: Decodes, z: mx.array, *, tile: int = 64, overlap: int | None = None
) -> mx.array:
    """Return about vae.decode(z), evaluated, in the memory of one tile; exactly it if one is all.

    Args:
        vae: The autoencoder.
        z: Latents [B, h, w, C], unscaled.
        tile: Side of a tile in latent pixels.
        overlap: Least number of latent pixels two neighbours share; a quarter of a tile if None.
    """
    rows, columns = (intervals(side, tile, _overlap(tile, overlap)) for side in z.shape[1:3])
    return blend_tiles(vae.decode, z, rows, columns, out_scale=vae.config.spatial_scale_factor)


def encode_tiled(
    vae: AutoencoderKL, x: mx.array, *, tile: int = 64, overlap: int | None = None
) -> DiagonalGaussian:
    """Return about vae.encode(x), evaluated, in the memory of one tile; exactly it if one is all.

    Args:
        vae: The autoencoder.
        x: Images [B, H, W, 3].
        tile: Side of a tile in latent pixels, as in `decode_tiled`.
        overlap: Least number of latent pixels two neighbours share; a quarter of a tile if None.

    Raises:
        UsageError: a side of the images is not a multiple of the latents' scale.
    """
    scale = vae.config.spatial_scale_factor
    height, width = x.shape[1:3]
    if height % scale or width % scale:
        raise UsageError(
            f"an image of {width}x{height} pixels cannot be encoded in tiles",
            hint=f"both sides must be multiples of {scale}",
        )
    sides = height // scale, width // scale
    rows, columns = (intervals(side, tile, _overlap(tile, overlap)) for side in sides)
    moments = blend_tiles(vae.moments, x, rows, columns, in_scale=scale)
    return DiagonalGaussian.from_moments(moments)


def one_at_a_time(function: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """Return function(x), computed and evaluated for one row of the batch after the other."""
    results = []
    for index in range(x.shape[0]):
        results.append(function(x[index : index + 1]))
        mx.eval(results[-1])
    return mx.concatenate(results)


def blend_tiles(
    function: Callable[[mx.array], mx.array],
    x: mx.array,
    rows: Sequence[Interval],
    columns: Sequence[Interval],
    *,
    in_scale: int = 1,
    out_scale: int = 1,
) -> mx.array:
    """Return `function` of tiles of `x`, blended where they overlap, evaluated.

    Args:
        function: Makes [B, out_scale * h, out_scale * w, D] of [B, in_scale * h, in_scale * w, C].
        x: [B, H, W, C].
        rows: Where the tiles begin and end, top to bottom: each begins no later than the one
            before it ends.
        columns: The same, left to right.
        in_scale: Pixels of `x` to one of the intervals.
        out_scale: Pixels of the result to one of the intervals.
    """
    down, right = blend_weights(rows, out_scale), blend_weights(columns, out_scale)
    size = rows[-1][1] * out_scale, columns[-1][1] * out_scale
    blended, dtype = None, x.dtype
    for (top, bottom), row_weights in zip(rows, down, strict=True):
        for (left, end), column_weights in zip(columns, right, strict=True):
            part = x[:, top * in_scale : bottom * in_scale, left * in_scale : end * in_scale]
            tile = function(part)
            if blended is None:
                blended, dtype = mx.zeros((x.shape[0], *size, tile.shape[-1])), tile.dtype
            weights = mx.array(row_weights)[:, None, None] * mx.array(column_weights)[:, None]
            where = (
                slice(None),
                slice(top * out_scale, bottom * out_scale),
                slice(left * out_scale, end * out_scale),
            )
            blended[where] = blended[where] + tile * weights
            mx.eval(blended)  # frees the tile's activations before those of the next
    assert blended is not None
    return blended.astype(dtype)


def intervals(length: int, tile: int, overlap: int) -> list[Interval]:
    """Return the fewest intervals of `tile` that cover `length`, spread evenly.

    Neighbours share `overlap` or more. One interval, perhaps shorter, if that is all it takes.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap must be in [0, {tile}), got {overlap}")
    if length <= tile:
        return [(0, length)]
    gaps = -(-(length - tile) // (tile - overlap))
    starts = [index * (length - tile) // gaps for index in range(gaps + 1)]
    return [(start, start + tile) for start in starts]


def blend_weights(spans: Sequence[Interval], scale: int) -> list[np.ndarray]:
    """Return each interval's share of its own pixels, float32; the shares of a pixel sum to 1.

    From where an interval begins to where the one before it ends, its share rises linearly from 0.
    """
    left = np.ones(spans[-1][1] * scale)  # what later intervals leave
    shares = []
    for index in range(len(spans) - 1, -1, -1):
        start, stop = (edge * scale for edge in spans[index])
        rise = spans[index - 1][1] * scale - start if index else 0
        own = np.ones(stop - start)
        own[:rise] = np.arange(rise) / max(rise, 1)
        shares.append((left[start:stop] * own).astype(np.float32))
        left[start:stop] *= 1 - own
    return shares[::-1]


def _overlap(tile: int, overlap: int | None) -> int:
    return tile // 4 if overlap is None else overlap
