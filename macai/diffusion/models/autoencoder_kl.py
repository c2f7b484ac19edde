"""Stable Diffusion's autoencoder (diffusers AutoencoderKL). Arrays are NHWC.

Latents are unscaled here: what the U-Net sees is (z - shift_factor) * scaling_factor. In less
memory: tiling.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.configs import read_config, unsupported
from macai.diffusion.models.group_norm import use_exact_norms
from macai.diffusion.models.vae import Decoder, DiagonalGaussian, Encoder
from macai.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderKLConfig:
    """The keys of diffusers' config.json, with its defaults."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        name, stages = "AutoencoderKL", len(self.block_out_channels)
        if self.act_fn not in ("silu", "swish"):
            raise unsupported(name, "act_fn", self.act_fn, known="silu")
        for key, kind in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            kinds = getattr(self, key)
            if set(kinds) - {kind}:
                raise unsupported(name, key, list(kinds), known=f"{kind} only")
            if len(kinds) != stages:
                raise ModelError(
                    f"{name}'s config.json: {key} has {len(kinds)} entries and "
                    f"block_out_channels has {stages}",
                    hint="each block has its number of channels",
                )
        if any(c < 1 or c % max(self.norm_num_groups, 1) for c in self.block_out_channels):
            raise ModelError(
                f"{name}'s config.json: block_out_channels {list(self.block_out_channels)} are "
                f"not all multiples of norm_num_groups {self.norm_num_groups}",
                hint="is the file whole?",
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "AutoencoderKLConfig":
        """Read a config.json; ModelError names what is wrong in it or not supported."""
        return read_config(cls, config)

    @property
    def spatial_scale_factor(self) -> int:
        """Pixels of an image beside one of its latents."""
        return 2 ** (len(self.block_out_channels) - 1)


class AutoencoderKL(nn.Module):
    """Images to normal distributions of latents, and latents to images."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        moments, latents = 2 * config.latent_channels, config.latent_channels
        self.encoder = Encoder(
            config.in_channels,
            moments,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_block_add_attention,
        )
        self.decoder = Decoder(
            latents,
            config.out_channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_block_add_attention,
        )
        if config.use_quant_conv:
            self.quant_conv = nn.Conv2d(moments, moments, 1)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        use_exact_norms(self)

    def encode(self, x: mx.array) -> DiagonalGaussian:
        """Return the distribution of the latents of x [B, H, W, 3] in [-1, 1].

        Sides are multiples of config.spatial_scale_factor, or the last pixels are not seen.
        """
        return DiagonalGaussian.from_moments(self.moments(x))

    def moments(self, x: mx.array) -> mx.array:
        """Return means and log variances, not clamped, [B, h, w, 2 C], of x [B, H, W, 3]."""
        moments = self.encoder(x)
        return self.quant_conv(moments) if "quant_conv" in self else moments

    def decode(self, z: mx.array) -> mx.array:
        """Return the images [B, H, W, 3], about [-1, 1], of unscaled latents z [B, h, w, C]."""
        return self.decoder(self.post_quant_conv(z) if "post_quant_conv" in self else z)
