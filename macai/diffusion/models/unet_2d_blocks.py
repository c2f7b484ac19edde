"""The U-Net's blocks, as in diffusers.models.unets.unet_2d_blocks.

Each class is two of diffusers': with `attentions` it is the one that has CrossAttn in its name.
"""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.denoiser_config import DenoiserConfig, UNet2DConditionConfig
from macai.diffusion.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from macai.diffusion.models.transformer_2d import Transformer2DModel

# Of (in_channels, out_channels): whatever else the blocks' resnets have in common is bound.
MakeResnet = Callable[[int, int], ResnetBlock2D]


class DownBlock2D(nn.Module):
    """Residual blocks, each with a transformer after it or none, then half the size.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of all outputs.
        num_layers: Number of residual blocks.
        resnet: Makes one.
        attentions: As many transformers, or none.
        downsample_padding: See Downsample2D; None to keep the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        resnet: MakeResnet,
        attentions: Sequence[nn.Module] = (),
        downsample_padding: int | None = None,
    ) -> None:
        super().__init__()
        self.resnets = [
            resnet(in_channels if i == 0 else out_channels, out_channels) for i in range(num_layers)
        ]
        if attentions:
            self.attentions = list(attentions)
        if downsample_padding is not None:
            self.downsamplers = [Downsample2D(out_channels, padding=downsample_padding)]

    def __call__(
        self, x: mx.array, temb: mx.array, encoder_hidden_states: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """[B, H, W, in_channels] -> the last output, and all of them: one a layer and the half."""
        states = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if "attentions" in self:
                x = self.attentions[i](x, encoder_hidden_states)
            states.append(x)
        for downsampler in self.downsamplers if "downsamplers" in self else []:
            x = downsampler(x)
            states.append(x)
        return x, states


class UpBlock2D(nn.Module):
    """Residual blocks over skips, each with a transformer after it or none, then twice the size.

    Args:
        in_channels: Channels of the last skip.
        out_channels: Channels of the output and of all other skips.
        prev_output_channel: Channels of the input.
        num_layers: Number of residual blocks.
        resnet: Makes one.
        attentions: As many transformers, or none.
        add_upsample: Whether the size changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        prev_output_channel: int,
        num_layers: int,
        resnet: MakeResnet,
        attentions: Sequence[nn.Module] = (),
        add_upsample: bool = True,
    ) -> None:
        super().__init__()
        inputs = [prev_output_channel, *[out_channels] * (num_layers - 1)]
        skips = [*[out_channels] * (num_layers - 1), in_channels]
        self.resnets = [resnet(a + b, out_channels) for a, b in zip(inputs, skips, strict=True)]
        if attentions:
            self.attentions = list(attentions)
        if add_upsample:
            self.upsamplers = [Upsample2D(out_channels)]

    def __call__(
        self,
        x: mx.array,
        skips: list[mx.array],
        temb: mx.array,
        encoder_hidden_states: mx.array,
    ) -> mx.array:
        """[B, H, W, prev_output_channel] -> [B, H', W', out_channels].

        Takes as many skips as it has layers from the end of `skips`. H' and W' are those of the
        skip that comes next: twice H and W, or one less where the way down rounded up.
        """
        for i, resnet in enumerate(self.resnets):
            x = resnet(mx.concatenate([x, skips.pop()], axis=-1), temb)
            if "attentions" in self:
                x = self.attentions[i](x, encoder_hidden_states)
        for upsampler in self.upsamplers if "upsamplers" in self else []:
            _, height, width, _ = skips[-1].shape
            x = upsampler(x, (height, width))
        return x


class UNetMidBlock2D(nn.Module):
    """A residual block, then an attention and a residual block as often as there are attentions."""

    def __init__(
        self, channels: int, *, resnet: MakeResnet, attentions: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.resnets = [resnet(channels, channels) for _ in range(len(attentions) + 1)]
        if attentions:
            self.attentions = list(attentions)

    def __call__(
        self,
        x: mx.array,
        temb: mx.array | None = None,
        encoder_hidden_states: mx.array | None = None,
    ) -> mx.array:
        """[B, H, W, channels] -> the same shape."""
        x = self.resnets[0](x, temb)
        for i, resnet in enumerate(self.resnets[1:]):
            x = resnet(self.attentions[i](x, encoder_hidden_states), temb)
        return x


def down_blocks(config: DenoiserConfig) -> list[DownBlock2D]:
    """Return the blocks on the way down."""
    channels = config.block_out_channels
    inputs = (channels[0], *channels)
    only_cross = config.per_block(config.only_cross_attention)
    return [
        DownBlock2D(
            inputs[i],
            channels[i],
            num_layers=config.layers[i],
            resnet=_make_resnet(config),
            attentions=_transformers(config, i, config.transformer_layers[i], only_cross[i])
            if kind == "CrossAttnDownBlock2D"
            else (),
            downsample_padding=config.downsample_padding if i < len(channels) - 1 else None,
        )
        for i, kind in enumerate(config.down_block_types)
    ]


def mid_block(config: DenoiserConfig) -> UNetMidBlock2D:
    """Return the block in the middle; it attends to itself whatever only_cross_attention says."""
    attentions: list[Transformer2DModel] = []
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        last = len(config.block_out_channels) - 1
        attentions = _transformers(config, last, config.transformer_layers[-1][:1], False)
    return UNetMidBlock2D(
        config.block_out_channels[-1],
        resnet=_make_resnet(config, output_scale_factor=config.mid_block_scale_factor),
        attentions=attentions,
    )


def up_blocks(config: UNet2DConditionConfig) -> list[UpBlock2D]:
    """Return the blocks on the way up."""
    channels = config.block_out_channels[::-1]
    only_cross = config.per_block(config.only_cross_attention)[::-1]
    last = len(channels) - 1
    return [
        UpBlock2D(
            channels[min(i + 1, last)],
            channels[i],
            prev_output_channel=channels[max(i - 1, 0)],
            num_layers=config.up_layers[i],
            resnet=_make_resnet(config),
            attentions=_transformers(
                config, last - i, config.up_transformer_layers[i], only_cross[i]
            )
            if kind == "CrossAttnUpBlock2D"
            else (),
            add_upsample=i < last,
        )
        for i, kind in enumerate(config.up_block_types)
    ]


def _make_resnet(config: DenoiserConfig, *, output_scale_factor: float = 1.0) -> MakeResnet:
    return partial(
        ResnetBlock2D,
        temb_channels=config.blocks_time_width,
        groups=config.groups,
        eps=config.norm_eps,
        act_fn=config.act_fn,
        time_embedding_norm=config.resnet_time_scale_shift,
        output_scale_factor=output_scale_factor,
        dropout=config.dropout,
    )


def _transformers(
    config: DenoiserConfig, level: int, layers: Sequence[int], only_cross_attention: bool
) -> list[Transformer2DModel]:
    """Return a transformer of so many blocks for each layer; `level` counts from the top."""
    channels, heads = config.block_out_channels[level], config.heads[level]
    return [
        Transformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=channels // heads,
            in_channels=channels,
            num_layers=n,
            norm_num_groups=config.groups,
            cross_attention_dim=config.per_block(config.cross_attention_dim)[level],
            use_linear_projection=config.use_linear_projection,
            only_cross_attention=only_cross_attention,
            upcast_attention=config.upcast_attention,
        )
        for n in layers
    ]
