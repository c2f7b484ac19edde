"""TAESD, the small autoencoder for previews (diffusers AutoencoderTiny). Arrays are NHWC.

It has no norms and no attention, so what a pixel depends on ends a few tiles' widths away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.configs import read_config, unsupported
from macai.diffusion.models.resnet import ACTIVATIONS, upsample_nearest
from macai.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderTinyConfig:
    """The keys of diffusers' config.json, with its defaults."""

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        name = "AutoencoderTiny"
        if self.act_fn not in ACTIVATIONS:
            raise unsupported(name, "act_fn", self.act_fn, known=", ".join(ACTIVATIONS))
        if self.upsample_fn != "nearest":
            raise unsupported(name, "upsample_fn", self.upsample_fn, known="nearest")
        if self.upsampling_scaling_factor != 2:  # the encoder always halves
            raise unsupported(
                name, "upsampling_scaling_factor", self.upsampling_scaling_factor, known=2
            )
        for side in ("encoder", "decoder"):
            channels = getattr(self, f"{side}_block_out_channels")
            blocks = getattr(self, f"num_{side}_blocks")
            if not channels or len(set(channels)) > 1 or len(channels) != len(blocks):
                raise ModelError(
                    f"{name}'s config.json: {side}_block_out_channels = {list(channels)} with "
                    f"num_{side}_blocks = {list(blocks)}",
                    hint="one number of channels for each stage, and the same in all",
                )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "AutoencoderTinyConfig":
        """Read a config.json; ModelError names what is wrong in it or not supported."""
        return read_config(cls, config)

    @property
    def spatial_scale_factor(self) -> int:
        """Pixels of an image beside one of its latents."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)


class _Activation(nn.Module):
    """Takes a place in a list of layers, as torch's activations do in the parameters' names."""

    def __init__(self, act_fn: str) -> None:
        super().__init__()
        self._function = ACTIVATIONS[act_fn]

    def __call__(self, x: mx.array) -> mx.array:
        return self._function(x)


class _Upsample(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        return upsample_nearest(x)


class AutoencoderTinyBlock(nn.Module):
    """Three 3x3 convolutions beside a skip, and a ReLU after the sum."""

    def __init__(self, channels: int, act_fn: str) -> None:
        super().__init__()
        self.conv = [
            _conv(channels, channels),
            _Activation(act_fn),
            _conv(channels, channels),
            _Activation(act_fn),
            _conv(channels, channels),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, C] -> [B, H, W, C]."""
        return nn.relu(_in_turn(self.conv, x) + x)


class EncoderTiny(nn.Module):
    """Images in [-1, 1] to latents."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        channels = config.encoder_block_out_channels[0]
        self.layers: list[nn.Module] = []
        for stage, blocks in enumerate(config.num_encoder_blocks):
            if stage == 0:
                self.layers.append(_conv(config.in_channels, channels))
            else:
                self.layers.append(_conv(channels, channels, stride=2, bias=False))
            self.layers += [AutoencoderTinyBlock(channels, config.act_fn) for _ in range(blocks)]
        self.layers.append(_conv(channels, config.latent_channels))

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, 3] -> [B, h, w, latent_channels]."""
        return _in_turn(self.layers, (x + 1) / 2)


class DecoderTiny(nn.Module):
    """Latents to images in [-1, 1]."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        channels = config.decoder_block_out_channels[0]
        last = len(config.num_decoder_blocks) - 1
        self.layers: list[nn.Module] = [
            _conv(config.latent_channels, channels),
            _Activation(config.act_fn),
        ]
        for stage, blocks in enumerate(config.num_decoder_blocks):
            self.layers += [AutoencoderTinyBlock(channels, config.act_fn) for _ in range(blocks)]
            if stage != last:
                self.layers += [_Upsample(), _conv(channels, channels, bias=False)]
        self.layers.append(_conv(channels, config.out_channels))

    def __call__(self, z: mx.array) -> mx.array:
        """[B, h, w, latent_channels] -> [B, H, W, 3]."""
        return _in_turn(self.layers, mx.tanh(z / 3) * 3) * 2 - 1


class AutoencoderTiny(nn.Module):
    """diffusers' AutoencoderTiny: latents are the U-Net's own, so scaling_factor is 1."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderTiny(config)
        self.decoder = DecoderTiny(config)

    def encode(self, x: mx.array) -> mx.array:
        """Return the latents [B, h, w, latent_channels] of x [B, H, W, 3] in [-1, 1]."""
        return self.encoder(x)

    def decode(self, z: mx.array) -> mx.array:
        """Return the images [B, H, W, 3], about [-1, 1], of z [B, h, w, latent_channels]."""
        return self.decoder(z)


def _conv(channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=bias)


def _in_turn(layers: list[nn.Module], x: mx.array) -> mx.array:
    for layer in layers:
        x = layer(x)
    return x
