"""What diffusers' UNet2DConditionModel and ControlNetModel have in common: all but the way up."""

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.denoiser_config import DenoiserConfig
from macai.diffusion.models.embeddings import TimestepEmbedding, Timesteps
from macai.diffusion.models.unet_2d_blocks import down_blocks, mid_block


class Denoiser(nn.Module):
    """Time, class and size embeddings, the blocks on the way down and the one in the middle."""

    def __init__(
        self,
        config: DenoiserConfig,
        *,
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        first, width = config.block_out_channels[0], config.time_width
        self.time_proj = _timesteps(config, first)
        self.time_embedding = TimestepEmbedding(
            first,
            width,
            act_fn=config.act_fn,
            post_act_fn=post_act_fn,
            cond_proj_dim=cond_proj_dim,
        )
        class_embedding = _class_embedding(config)
        if class_embedding is not None:
            self.class_embedding = class_embedding
        if config.addition_embed_type == "text_time":
            assert config.addition_time_embed_dim is not None
            assert config.projection_class_embeddings_input_dim is not None
            self.add_time_proj = _timesteps(config, config.addition_time_embed_dim)
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim, width
            )
        if config.encoder_hid_dim is not None:
            context = config.per_block(config.cross_attention_dim)[0]
            self.encoder_hid_proj = nn.Linear(config.encoder_hid_dim, context)
        self.down_blocks = down_blocks(config)
        if config.mid_block_type is not None:
            self.mid_block = mid_block(config)
        self._class_embed_type = config.class_embed_type

    def time_embed(
        self, timestep: mx.array | float, batch: int, dtype: mx.Dtype, condition: mx.array | None
    ) -> mx.array:
        """Return the embedding of the time, [batch, width] of `dtype`.

        Args:
            timestep: A number for all rows, or [batch].
            batch: Number of rows.
            dtype: That of the weights; sines and cosines are computed in float32.
            condition: [batch, cond_proj_dim], an LCM's guidance.
        """
        timesteps = mx.broadcast_to(mx.array(timestep), (batch,))
        embedded = self.time_proj(timesteps).astype(dtype)
        if condition is not None and "cond_proj" not in self.time_embedding:
            raise ValueError("timestep_cond is for models with time_cond_proj_dim in their config")
        condition = None if condition is None else condition.astype(dtype)
        return self.time_embedding(embedded, condition)

    def class_embed(self, class_labels: mx.array | None, dtype: mx.Dtype) -> mx.array | None:
        """Return the embedding of classes [B] or of what the config's kind takes; None if none."""
        if "class_embedding" not in self:
            return None
        if class_labels is None:
            raise ValueError("this model takes class_labels")
        if self._class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels)
        if self._class_embed_type is not None:
            class_labels = class_labels.astype(dtype)
        return self.class_embedding(class_labels).astype(dtype)

    def size_embed(
        self, text_embeds: mx.array | None, time_ids: mx.array | None, dtype: mx.Dtype
    ) -> mx.array | None:
        """Return the embedding of pooled text [B, D] and sizes [B, N] that XL adds, or None."""
        if "add_embedding" not in self:
            return None
        if text_embeds is None or time_ids is None:
            raise ValueError("this model takes text_embeds and time_ids")
        sizes = self.add_time_proj(time_ids.reshape(-1)).reshape(text_embeds.shape[0], -1)
        return self.add_embedding(
            mx.concatenate([text_embeds.astype(dtype), sizes.astype(dtype)], axis=-1)
        )

    def text_states(self, encoder_hidden_states: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return the text's states as the blocks attend to them."""
        states = encoder_hidden_states.astype(dtype)
        return self.encoder_hid_proj(states) if "encoder_hid_proj" in self else states

    def way_down(
        self, x: mx.array, temb: mx.array, encoder_hidden_states: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """[B, H, W, C] -> the middle block's input, and x with all blocks' outputs."""
        states = [x]
        for block in self.down_blocks:
            x, more = block(x, temb, encoder_hidden_states)
            states += more
        return x, states


def _timesteps(config: DenoiserConfig, width: int) -> Timesteps:
    return Timesteps(
        width,
        flip_sin_to_cos=config.flip_sin_to_cos,
        downscale_freq_shift=config.freq_shift,
    )


def _class_embedding(config: DenoiserConfig) -> nn.Module | None:
    kind, width = config.class_embed_type, config.time_width
    if kind is None:
        classes = config.num_class_embeds
        return None if classes is None else nn.Embedding(classes, width)
    if kind == "identity":
        return nn.Identity()
    if kind == "timestep":
        return TimestepEmbedding(config.block_out_channels[0], width, act_fn=config.act_fn)
    projected = config.projection_class_embeddings_input_dim
    assert projected is not None
    if kind == "simple_projection":
        return nn.Linear(projected, width)
    return TimestepEmbedding(projected, width)
