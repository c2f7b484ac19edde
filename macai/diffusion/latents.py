"""Between pictures and latents: the VAE's scale, noise in the order diffusers draws it, masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from macai.diffusion.models.autoencoder_kl import AutoencoderKL
from macai.diffusion.random import Noise
from macai.diffusion.schedulers.base import NoiseSource


@dataclass(frozen=True, slots=True)
class Latents:
    """How a VAE's latents are scaled for the U-Net, from its config."""

    vae: AutoencoderKL

    def normalise(self, z: mx.array) -> mx.array:
        """Return the VAE's latents [B, h, w, C] as the U-Net sees them."""
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = mx.array(config.latents_mean), mx.array(config.latents_std)
            return (z - mean) * config.scaling_factor / std
        return (z - (config.shift_factor or 0.0)) * config.scaling_factor

    def restore(self, z: mx.array) -> mx.array:
        """Return the U-Net's latents as the VAE decodes them: the inverse of normalise."""
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = mx.array(config.latents_mean), mx.array(config.latents_std)
            return z * std / config.scaling_factor + mean
        return z / config.scaling_factor + (config.shift_factor or 0.0)

    def encode(self, picture: mx.array, sources: Sequence[Noise]) -> mx.array:
        """Return latents for the U-Net of a picture [1, H, W, 3], one sample a source of noise."""
        posterior = self.vae.encode(picture.astype(_dtype(self.vae)))
        mean = posterior.mean.astype(mx.float32)
        std = mx.exp(0.5 * posterior.logvar.astype(mx.float32))
        noise = mx.array(drawing(sources)((len(sources), *mean.shape[1:])))
        return self.normalise(mean + std * noise)


def drawing(sources: Sequence[Noise]) -> NoiseSource:
    """Return a function that draws noise of a shape [B, h, w, C], a picture a source.

    Each draws in the order of a torch tensor [1, C, h, w], as diffusers does with a generator a
    picture, so a picture's noise does not depend on how many are made beside it.
    """

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        _, height, width, channels = shape
        drawn = [source.normal((1, channels, height, width)) for source in sources]
        return np.ascontiguousarray(np.concatenate(drawn).transpose(0, 2, 3, 1))

    return draw


def mask_for(mask: np.ndarray, height: int, width: int) -> mx.array:
    """Return a mask [1, H, W, 1] at the latents' size [1, height, width, 1], nearest pixel.

    As torch.nn.functional.interpolate's default: the pixel at the floor of the scaled index.
    """
    rows = np.arange(height) * mask.shape[1] // height
    columns = np.arange(width) * mask.shape[2] // width
    return mx.array(np.ascontiguousarray(mask[:, rows][:, :, columns]))


def _dtype(vae: AutoencoderKL) -> mx.Dtype:
    return vae.encoder.conv_in.weight.dtype
