"""Encoder and decoder of AutoencoderKL, as in diffusers.models.autoencoders.vae; NHWC."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.attention import Attention
from macai.diffusion.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D, group_norm

_EPS = 1e-6  # of all norms; no config says so
_LOGVAR_RANGE = -30.0, 20.0


@dataclass(frozen=True, slots=True)
class DiagonalGaussian:
    """A normal distribution of latents, each independent of the others.

    Attributes:
        mean: [B, h, w, C].
        logvar: Logarithm of the variance, [B, h, w, C], within [-30, 20].
    """

    mean: mx.array
    logvar: mx.array

    @classmethod
    def from_moments(cls, moments: mx.array) -> "DiagonalGaussian":
        """Make it of [B, h, w, 2 C]: means, then logarithms of variances, which are clamped."""
        mean, logvar = mx.split(moments, 2, axis=-1)
        return cls(mean, mx.clip(logvar, *_LOGVAR_RANGE))

    @property
    def std(self) -> mx.array:
        """The standard deviation, [B, h, w, C]."""
        return mx.exp(0.5 * self.logvar)

    def mode(self) -> mx.array:
        """Return the most likely latents: the mean."""
        return self.mean

    def sample(self, noise: mx.array) -> mx.array:
        """Return the latents that standard normal `noise` [B, h, w, C] stands for."""
        return self.mean + self.std * noise

    def kl(self) -> mx.array:
        """Return the divergence from the standard normal in nats, [B], summed over h, w and C."""
        terms = self.mean**2 + mx.exp(self.logvar) - 1 - self.logvar
        return 0.5 * terms.sum(axis=(1, 2, 3))


class DownEncoderBlock2D(nn.Module):
    """Residual blocks, then half the size unless it is the last."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, groups: int, last: bool
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers=layers, groups=groups)
        if not last:
            self.downsamplers = [Downsample2D(out_channels, padding=0)]

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, in_channels] -> [B, H / 2, W / 2, out_channels], or [B, H, W, ...]."""
        for layer in self.resnets:
            x = layer(x)
        return self.downsamplers[0](x) if "downsamplers" in self else x


class UpDecoderBlock2D(nn.Module):
    """Residual blocks, then twice the size unless it is the last."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, groups: int, last: bool
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers=layers, groups=groups)
        if not last:
            self.upsamplers = [Upsample2D(out_channels)]

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, in_channels] -> [B, 2 H, 2 W, out_channels], or [B, H, W, ...]."""
        for layer in self.resnets:
            x = layer(x)
        return self.upsamplers[0](x) if "upsamplers" in self else x


class UNetMidBlock2D(nn.Module):
    """A residual block, attention of one head over all positions, a residual block."""

    def __init__(self, channels: int, *, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = _resnets(channels, channels, layers=2, groups=groups)
        if attention:
            self.attentions = [
                Attention(
                    channels,
                    heads=1,
                    dim_head=channels,
                    bias=True,
                    norm_num_groups=groups,
                    eps=_EPS,
                    residual_connection=True,
                )
            ]

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, channels] -> [B, H, W, channels]."""
        x = self.resnets[0](x)
        if "attentions" in self:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class Encoder(nn.Module):
    """Images to moments.

    Args:
        in_channels: Channels of an image.
        out_channels: Channels of the result: two for each latent channel.
        block_out_channels: Channels of each stage, of the image's size first.
        layers_per_block: Residual blocks of a stage.
        norm_num_groups: Groups of all norms.
        mid_block_add_attention: Whether the mid block attends.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        first, deepest = block_out_channels[0], block_out_channels[-1]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down_blocks = [
            DownEncoderBlock2D(
                before,
                channels,
                layers=layers_per_block,
                groups=norm_num_groups,
                last=index == len(block_out_channels) - 1,
            )
            for index, (before, channels) in enumerate(
                zip([first, *block_out_channels], block_out_channels, strict=False)
            )
        ]
        self.mid_block = UNetMidBlock2D(
            deepest, groups=norm_num_groups, attention=mid_block_add_attention
        )
        self.conv_norm_out = group_norm(norm_num_groups, deepest, _EPS)
        self.conv_out = nn.Conv2d(deepest, out_channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, in_channels] -> [B, h, w, out_channels]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents to images.

    Args:
        in_channels: Channels of the latents.
        out_channels: Channels of an image.
        block_out_channels: As in Encoder: of the image's size first, so used from the last.
        layers_per_block: As in Encoder: a stage here has one residual block more.
        norm_num_groups: Groups of all norms.
        mid_block_add_attention: Whether the mid block attends.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        upward = block_out_channels[::-1]
        deepest, last = upward[0], upward[-1]
        self.conv_in = nn.Conv2d(in_channels, deepest, 3, padding=1)
        self.mid_block = UNetMidBlock2D(
            deepest, groups=norm_num_groups, attention=mid_block_add_attention
        )
        self.up_blocks = [
            UpDecoderBlock2D(
                before,
                channels,
                layers=layers_per_block + 1,
                groups=norm_num_groups,
                last=index == len(upward) - 1,
            )
            for index, (before, channels) in enumerate(
                zip([deepest, *upward], upward, strict=False)
            )
        ]
        self.conv_norm_out = group_norm(norm_num_groups, last, _EPS)
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)

    def __call__(self, z: mx.array) -> mx.array:
        """[B, h, w, in_channels] -> [B, H, W, out_channels]."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))


def _resnets(
    in_channels: int, out_channels: int, *, layers: int, groups: int
) -> list[ResnetBlock2D]:
    return [
        ResnetBlock2D(
            in_channels if index == 0 else out_channels,
            out_channels,
            temb_channels=None,
            groups=groups,
            eps=_EPS,
        )
        for index in range(layers)
    ]
