"""The transformer over a feature map, as in diffusers.models.transformers.transformer_2d."""

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.attention import BasicTransformerBlock
from macai.diffusion.models.resnet import group_norm

_NORM_EPS = 1e-6  # not the U-Net's norm_eps


class Transformer2DModel(nn.Module):
    """Transformer blocks over the positions of a feature map, around a skip.

    Args:
        num_attention_heads: Number of heads.
        attention_head_dim: Width of one head.
        in_channels: Channels of the input and of the output.
        num_layers: Number of blocks.
        norm_num_groups: Groups of the norm before them.
        cross_attention_dim: Width of `encoder_hidden_states`.
        use_linear_projection: Linear layers before and after the blocks instead of 1x1
            convolutions. They compute the same; their weights' shapes differ.
        only_cross_attention: See BasicTransformerBlock.
        upcast_attention: See Attention.
    """

    def __init__(
        self,
        *,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        num_layers: int,
        norm_num_groups: int,
        cross_attention_dim: int,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        inner = num_attention_heads * attention_head_dim

        def projection(dim_in: int, dim_out: int) -> nn.Module:
            if use_linear_projection:
                return nn.Linear(dim_in, dim_out)
            return nn.Conv2d(dim_in, dim_out, 1)

        self.norm = group_norm(norm_num_groups, in_channels, _NORM_EPS)
        self.proj_in = projection(in_channels, inner)
        self.transformer_blocks = [
            BasicTransformerBlock(
                inner,
                num_attention_heads=num_attention_heads,
                attention_head_dim=attention_head_dim,
                cross_attention_dim=cross_attention_dim,
                only_cross_attention=only_cross_attention,
                upcast_attention=upcast_attention,
            )
            for _ in range(num_layers)
        ]
        self.proj_out = projection(inner, in_channels)

    def __call__(self, x: mx.array, encoder_hidden_states: mx.array) -> mx.array:
        """[B, H, W, C], and [B, S, cross_attention_dim] -> [B, H, W, C]."""
        B, H, W, _ = x.shape
        hidden = self.proj_in(self.norm(x))
        hidden = hidden.reshape(B, H * W, -1)
        for block in self.transformer_blocks:
            hidden = block(hidden, encoder_hidden_states)
        return x + self.proj_out(hidden.reshape(B, H, W, -1))
