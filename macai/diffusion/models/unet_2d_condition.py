"""The U-Net of Stable Diffusion, as in diffusers.models.unets.unet_2d_condition."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.denoiser import Denoiser
from macai.diffusion.models.denoiser_config import UNet2DConditionConfig
from macai.diffusion.models.resnet import ACTIVATIONS, group_norm
from macai.diffusion.models.unet_2d_blocks import up_blocks

__all__ = ["UNet2DConditionConfig", "UNet2DConditionModel"]


class UNet2DConditionModel(Denoiser):
    """Predicts noise, velocity or the sample itself from a noisy sample, a time and a text.

    Parameters have diffusers' names; `layout.to_mlx` brings a checkpoint into their layout. The
    compute type is that of the weights, whatever the inputs' types are.
    """

    def __init__(self, config: UNet2DConditionConfig) -> None:
        super().__init__(
            config,
            post_act_fn=config.timestep_post_act,
            cond_proj_dim=config.time_cond_proj_dim,
        )
        first, kernel = config.block_out_channels[0], config.conv_in_kernel
        self.conv_in = nn.Conv2d(config.in_channels, first, kernel, padding=(kernel - 1) // 2)
        self.up_blocks = up_blocks(config)
        self.conv_norm_out = group_norm(config.groups, first, config.norm_eps)
        kernel = config.conv_out_kernel
        self.conv_out = nn.Conv2d(first, config.out_channels, kernel, padding=(kernel - 1) // 2)
        self.config = config

    def __call__(
        self,
        sample: mx.array,
        timestep: mx.array | float,
        encoder_hidden_states: mx.array,
        *,
        class_labels: mx.array | None = None,
        timestep_cond: mx.array | None = None,
        text_embeds: mx.array | None = None,
        time_ids: mx.array | None = None,
        down_block_additional_residuals: Sequence[mx.array] | None = None,
        mid_block_additional_residual: mx.array | None = None,
    ) -> mx.array:
        """[B, H, W, in_channels] -> [B, H, W, out_channels], in the type of the weights.

        Args:
            sample: Any height and width.
            timestep: A number, or one a row: [B].
            encoder_hidden_states: [B, T, cross_attention_dim], the text encoder's.
            class_labels: [B], or what the config's class_embed_type takes.
            timestep_cond: [B, time_cond_proj_dim], an LCM's guidance; may be left out.
            text_embeds: [B, D], XL's pooled text.
            time_ids: [B, N], XL's sizes: 6 numbers, or 5 in the refiner.
            down_block_additional_residuals: A ControlNet's first result.
            mid_block_additional_residual: Its second.

        Raises:
            ValueError: an input the model needs, or does not know, is missing or given.
        """
        dtype = self.conv_in.weight.dtype
        temb = self._embed(
            (timestep, timestep_cond), class_labels, (text_embeds, time_ids), sample.shape[0], dtype
        )
        states = self.text_states(encoder_hidden_states, dtype)
        x = sample.astype(dtype)
        if self.config.center_input_sample:
            x = 2 * x - 1
        x, skips = self.way_down(self.conv_in(x), temb, states)
        if down_block_additional_residuals is not None:
            pairs = zip(skips, down_block_additional_residuals, strict=True)
            skips = [skip + more.astype(dtype) for skip, more in pairs]
        if "mid_block" in self:
            x = self.mid_block(x, temb, states)
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual.astype(dtype)
        for block in self.up_blocks:
            x = block(x, skips, temb, states)
        return self.conv_out(ACTIVATIONS[self.config.act_fn](self.conv_norm_out(x)))

    def _embed(
        self,
        time: tuple[mx.array | float, mx.array | None],
        class_labels: mx.array | None,
        size: tuple[mx.array | None, mx.array | None],
        batch: int,
        dtype: mx.Dtype,
    ) -> mx.array:
        embedded = self.time_embed(time[0], batch, dtype, time[1])
        of_class = self.class_embed(class_labels, dtype)
        if of_class is not None and self.config.class_embeddings_concat:
            embedded = mx.concatenate([embedded, of_class], axis=-1)
        elif of_class is not None:
            embedded = embedded + of_class
        of_size = self.size_embed(*size, dtype)
        if of_size is not None:
            embedded = embedded + of_size
        activation = self.config.time_embedding_act_fn
        return embedded if activation is None else ACTIVATIONS[activation](embedded)
