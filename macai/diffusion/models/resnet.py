"""Residual blocks and changes of size, as in diffusers.models.{resnet,downsampling,upsampling}.

Arrays are NHWC; a block computes in the type of its weights.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.group_norm import GroupNorm

Activation = Callable[[mx.array], mx.array]

ACTIVATIONS: dict[str, Activation] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": nn.mish,
    "gelu": nn.gelu,
    "relu": nn.relu,
}


def group_norm(groups: int, channels: int, eps: float) -> GroupNorm:
    """Return torch's group norm: statistics over height, width and the channels of a group."""
    return GroupNorm(groups, channels, eps)


class ResnetBlock2D(nn.Module):
    """Two 3x3 convolutions with group norms before them, around a skip (diffusers ResnetBlock2D).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; where they differ, the skip has a 1x1 convolution.
        temb_channels: Width of the time embedding; None for a block that takes none.
        groups: Groups of both norms.
        eps: Epsilon of both norms.
        act_fn: A name in ACTIVATIONS.
        time_embedding_norm: "default" adds the embedding before the second norm; "scale_shift"
            scales and shifts after it.
        skip_time_act: Project the embedding without the activation.
        output_scale_factor: What the sum is divided by.
        dropout: Of the second convolution's input, while training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        temb_channels: int | None,
        groups: int,
        eps: float,
        act_fn: str = "silu",
        time_embedding_norm: str = "default",
        skip_time_act: bool = False,
        output_scale_factor: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self._scale_shift = time_embedding_norm == "scale_shift"
        if temb_channels is not None:
            width = 2 * out_channels if self._scale_shift else out_channels
            self.time_emb_proj = nn.Linear(temb_channels, width)
        self.norm2 = group_norm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self._activation = ACTIVATIONS[act_fn]
        self._skip_time_act = skip_time_act
        self._output_scale_factor = output_scale_factor

    def __call__(self, x: mx.array, temb: mx.array | None = None) -> mx.array:
        """[B, H, W, in_channels], and temb [B, temb_channels] -> [B, H, W, out_channels]."""
        hidden = self.conv1(self._activation(self.norm1(x)))
        if "time_emb_proj" in self:
            assert temb is not None
            hidden = self._conditioned(hidden, temb)
        else:
            hidden = self.norm2(hidden)
        hidden = self.conv2(self.dropout(self._activation(hidden)))
        skip = self.conv_shortcut(x) if "conv_shortcut" in self else x
        total = skip + hidden
        return total if self._output_scale_factor == 1 else total / self._output_scale_factor

    def _conditioned(self, hidden: mx.array, temb: mx.array) -> mx.array:
        temb = self.time_emb_proj(temb if self._skip_time_act else self._activation(temb))
        temb = temb[:, None, None, :]
        if not self._scale_shift:
            return self.norm2(hidden + temb)
        scale, shift = mx.split(temb, 2, axis=-1)
        return self.norm2(hidden) * (1 + scale) + shift


class Downsample2D(nn.Module):
    """A 3x3 convolution of stride 2 (diffusers Downsample2D with use_conv).

    Args:
        channels: Channels of the input and, unless `out_channels` says else, of the output.
        out_channels: Channels of the output.
        padding: 1 pads all sides; 0 pads one row below and one column right, as the VAE does.
    """

    def __init__(self, channels: int, *, out_channels: int | None = None, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=padding)
        self._padding = padding

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, C] -> [B, H / 2, W / 2, C_out], rounded up; down where padding is 0."""
        if self._padding == 0:
            x = mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        return self.conv(x)


class Upsample2D(nn.Module):
    """Nearest neighbours, then a 3x3 convolution (diffusers Upsample2D with use_conv)."""

    def __init__(self, channels: int, *, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1)

    def __call__(self, x: mx.array, size: tuple[int, int] | None = None) -> mx.array:
        """[B, H, W, C] -> [B, *size, C_out]; `size` is twice the input's unless given."""
        return self.conv(upsample_nearest(x, size))


_twice = nn.Upsample(2)  # the exporter to Core ML knows it by its class


def upsample_nearest(x: mx.array, size: tuple[int, int] | None = None) -> mx.array:
    """Return x [B, H, W, C] at `size` (height, width) as torch's interpolate(mode="nearest") does.

    Without a size, twice the input's.
    """
    H, W = x.shape[1:3]
    height, width = size or (2 * H, 2 * W)
    if (height, width) == (2 * H, 2 * W):
        return _twice(x)
    x = mx.take(x, mx.arange(height) * H // height, axis=1)
    return mx.take(x, mx.arange(width) * W // width, axis=2)
