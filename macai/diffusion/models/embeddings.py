"""Embeddings of the time and of what is added to it, as in diffusers.models.embeddings."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.diffusion.models.resnet import ACTIVATIONS

_MAX_PERIOD = 10000


class Timesteps(nn.Module):
    """Sines and cosines of numbers, always in float32: in float16 t = 999 is off by half a turn.

    Args:
        num_channels: Width of the embedding; an odd one ends in a zero.
        flip_sin_to_cos: Cosines first.
        downscale_freq_shift: Taken from the number of frequencies when they are spaced.
    """

    def __init__(
        self, num_channels: int, *, flip_sin_to_cos: bool, downscale_freq_shift: float
    ) -> None:
        super().__init__()
        half = num_channels // 2
        exponent = np.float32(-math.log(_MAX_PERIOD)) * np.arange(half, dtype=np.float32)
        exponent /= np.float32(half - downscale_freq_shift)
        # Rounded once: each unit in the last place is 6e-5 in the angle of t = 999.
        self._frequencies = mx.array(np.exp(exponent.astype(np.float64)).astype(np.float32))
        self._flip_sin_to_cos = flip_sin_to_cos
        self._odd = num_channels % 2 == 1

    def __call__(self, timesteps: mx.array) -> mx.array:
        """[B], of any type -> float32 [B, num_channels]."""
        angles = timesteps.astype(mx.float32)[:, None] * self._frequencies[None]
        sin, cos = mx.sin(angles), mx.cos(angles)
        out = mx.concatenate([cos, sin] if self._flip_sin_to_cos else [sin, cos], axis=-1)
        return mx.pad(out, [(0, 0), (0, 1)]) if self._odd else out


class TimestepEmbedding(nn.Module):
    """Two linear layers (diffusers TimestepEmbedding).

    Args:
        in_channels: Width of the input.
        time_embed_dim: Width of the output.
        act_fn: Between the layers, a name in ACTIVATIONS.
        post_act_fn: After them; None for none.
        cond_proj_dim: Width of a condition added to the input (LCM's guidance); None for none.
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        *,
        act_fn: str = "silu",
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        if cond_proj_dim is not None:
            self.cond_proj = nn.Linear(cond_proj_dim, in_channels, bias=False)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)
        self._activation = ACTIVATIONS[act_fn]
        self._post_activation = ACTIVATIONS[post_act_fn] if post_act_fn is not None else None

    def __call__(self, x: mx.array, condition: mx.array | None = None) -> mx.array:
        """[B, in_channels], and [B, cond_proj_dim] -> [B, time_embed_dim]."""
        if condition is not None:
            x = x + self.cond_proj(condition)
        x = self.linear_2(self._activation(self.linear_1(x)))
        return x if self._post_activation is None else self._post_activation(x)
