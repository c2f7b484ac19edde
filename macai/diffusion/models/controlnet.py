"""ControlNet (Zhang et al., arXiv:2302.05543), as in diffusers.models.controlnets.controlnet."""

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.denoiser import Denoiser
from macai.diffusion.models.denoiser_config import ControlNetConfig

__all__ = ["ControlNetConfig", "ControlNetModel"]


class ControlNetConditioningEmbedding(nn.Module):
    """Convolutions from a picture to the size of its latents: half the size for each but one.

    Args:
        conditioning_embedding_channels: Channels of the output.
        conditioning_channels: Channels of the picture.
        block_out_channels: Channels in between.
    """

    def __init__(
        self,
        conditioning_embedding_channels: int,
        *,
        conditioning_channels: int,
        block_out_channels: tuple[int, ...],
    ) -> None:
        super().__init__()
        first, last = block_out_channels[0], block_out_channels[-1]
        self.conv_in = nn.Conv2d(conditioning_channels, first, 3, padding=1)
        self.blocks = [
            nn.Conv2d(a, b, 3, stride=stride, padding=1)
            for before, after in pairwise(block_out_channels)
            for a, b, stride in ((before, before, 1), (before, after, 2))
        ]
        self.conv_out = nn.Conv2d(last, conditioning_embedding_channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, 8 H, 8 W, conditioning_channels] -> [B, H, W, C], with the usual four channels."""
        for conv in (self.conv_in, *self.blocks):
            x = nn.silu(conv(x))
        return self.conv_out(x)


class ControlNetModel(Denoiser):
    """A U-Net's way down that is also given a picture; what it finds is added to the U-Net's skips.

    Parameters and types are as in UNet2DConditionModel.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        channels, layers = config.block_out_channels, config.layers
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            channels[0],
            conditioning_channels=config.conditioning_channels,
            block_out_channels=config.conditioning_embedding_out_channels,
        )
        skips = [channels[0]]
        for width, n in zip(channels, layers, strict=True):
            skips += [width] * (n + 1)
        skips.pop()  # the last block keeps its size
        self.controlnet_down_blocks = [nn.Conv2d(width, width, 1) for width in skips]
        self.controlnet_mid_block = nn.Conv2d(channels[-1], channels[-1], 1)
        self.config = config

    def __call__(
        self,
        sample: mx.array,
        timestep: mx.array | float,
        encoder_hidden_states: mx.array,
        controlnet_cond: mx.array,
        *,
        conditioning_scale: float = 1.0,
        class_labels: mx.array | None = None,
        text_embeds: mx.array | None = None,
        time_ids: mx.array | None = None,
    ) -> tuple[list[mx.array], mx.array]:
        """Return what to add to a U-Net's skips and to its middle, in the type of the weights.

        Args:
            sample: [B, H, W, in_channels].
            timestep: A number, or one a row: [B].
            encoder_hidden_states: [B, T, cross_attention_dim], the text encoder's.
            controlnet_cond: [B, 8 H, 8 W, conditioning_channels], the picture, RGB in [0, 1].
            conditioning_scale: What the results are multiplied by.
            class_labels: [B], or what the config's class_embed_type takes.
            text_embeds: [B, D], XL's pooled text.
            time_ids: [B, 6], XL's sizes.

        Raises:
            ValueError: an input the model needs is missing.
        """
        config, dtype = self.config, self.conv_in.weight.dtype
        if config.controlnet_conditioning_channel_order == "bgr":
            controlnet_cond = controlnet_cond[..., ::-1]
        temb = self.time_embed(timestep, sample.shape[0], dtype, None)
        for more in (
            self.class_embed(class_labels, dtype),
            self.size_embed(text_embeds, time_ids, dtype),
        ):
            temb = temb if more is None else temb + more
        states = encoder_hidden_states.astype(dtype)
        picture = self.controlnet_cond_embedding(controlnet_cond.astype(dtype))
        x, skips = self.way_down(self.conv_in(sample.astype(dtype)) + picture, temb, states)
        x = self.mid_block(x, temb, states)
        convs = zip(skips, self.controlnet_down_blocks, strict=True)
        found = [*(conv(skip) for skip, conv in convs), self.controlnet_mid_block(x)]
        found = [one * conditioning_scale for one in found]
        if config.global_pool_conditions:
            found = [one.mean(axis=(1, 2), keepdims=True) for one in found]
        return found[:-1], found[-1]
