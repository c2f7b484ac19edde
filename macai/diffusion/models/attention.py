"""Attention and the transformer block, as in diffusers.models.{attention,attention_processor}."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.resnet import group_norm
from macai.models.exponential import as_is
from macai.models.exponential import attend as attend_by_hand

SCORES = 1 << 29
"""Numbers there may be of all queries with all keys at once: 2 GiB of float32."""
FEW_SCORES = 1 << 25  # where memory is short: 128 MiB
IN_FLIGHT = 4  # pieces that MLX makes room for before the first is done
CACHED_SCORES = 1 << 20
"""On a CPU, where all of a gigabyte of scores are read and written a dozen times."""
_MLX = mx.fast.scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head attention (diffusers Attention with AttnProcessor2_0).

    Args:
        query_dim: Channels of the input and of the output.
        heads: Number of heads.
        dim_head: Width of one head.
        cross_attention_dim: Width of what is attended to; None for the input itself.
        bias: Whether the projections to queries, keys and values have a bias; the output's has.
        upcast_attention: Attend in float32 in any case: some models overflow float16.
        dropout: Of the output, while training.
        norm_num_groups: Groups of a group norm of the input; None for no norm.
        eps: Epsilon of that norm.
        residual_connection: Add the input to the output.
        rescale_output_factor: What the output is divided by.
    """

    def __init__(
        self,
        query_dim: int,
        *,
        heads: int,
        dim_head: int,
        cross_attention_dim: int | None = None,
        bias: bool = False,
        upcast_attention: bool = False,
        dropout: float = 0.0,
        norm_num_groups: int | None = None,
        eps: float = 1e-5,
        residual_connection: bool = False,
        rescale_output_factor: float = 1.0,
    ) -> None:
        super().__init__()
        inner, context = heads * dim_head, cross_attention_dim or query_dim
        if norm_num_groups is not None:
            self.group_norm = group_norm(norm_num_groups, query_dim, eps)
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(context, inner, bias=bias)
        self.to_v = nn.Linear(context, inner, bias=bias)
        self.to_out = [nn.Linear(inner, query_dim), nn.Dropout(dropout)]
        self._heads = heads
        self._scale = dim_head**-0.5
        self._upcast = upcast_attention
        self._residual = residual_connection
        self._rescale = rescale_output_factor
        self._most_scores: int | None = None

    def __call__(self, x: mx.array, encoder_hidden_states: mx.array | None = None) -> mx.array:
        """[B, T, C] or [B, H, W, C], and [B, S, cross_attention_dim] -> the first one's shape."""
        shape, residual = x.shape, x
        if "group_norm" in self:
            x = self.group_norm(x)
        x = x.reshape(shape[0], -1, shape[-1])
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            self._split(projected)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = attend(q, k, v, scale=self._scale, most=self._most_scores)
        out = out.swapaxes(1, 2).reshape(*x.shape[:2], -1).astype(x.dtype)
        for layer in self.to_out:
            out = layer(out)
        out = out.reshape(shape)
        if self._residual:
            out = out + residual
        return out if self._rescale == 1 else out / self._rescale

    def spare_memory(self) -> None:
        """Attend to as much at once as FEW_SCORES allow: slower where a kernel needs no scores."""
        self._most_scores = FEW_SCORES

    def _split(self, x: mx.array) -> mx.array:
        """[B, T, heads * D] -> [B, heads, T, D]."""
        x = x.reshape(*x.shape[:2], self._heads, -1).swapaxes(1, 2)
        return x.astype(mx.float32) if self._upcast else x


def attend(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, most: int | None = None
) -> mx.array:
    """Return softmax(scale q k^T) v of [B, heads, T, D] and twice [B, heads, S, D].

    Piece by piece of the queries where there are more scores than `most`, or else SCORES: without a
    fused kernel for D, as on a CPU, MLX holds them all, for SD1 at 1024x1024 pixels 17 GB.
    """
    most = most or SCORES
    B, heads, T, _ = q.shape
    S = k.shape[2]
    if B * heads * T * S > CACHED_SCORES and _by_hand(q):
        return _head_by_head(q * scale, k, v)
    if B * heads * T * S <= most:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    rows = max(1, T * (most // IN_FLIGHT) // (B * heads * T * S))
    return _in_pieces(
        lambda some: mx.fast.scaled_dot_product_attention(some, k, v, scale=scale), q, rows
    )


def _by_hand(q: mx.array) -> bool:
    """Return whether MLX would take exp of the scores one by one; not where that is traced."""
    is_mlx = mx.fast.scaled_dot_product_attention is _MLX
    return is_mlx and mx.default_device() == mx.cpu and q.dtype == mx.float32


def _head_by_head(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Attend with so few scores at a time that a core's cache holds them."""
    B, heads, T, _ = q.shape
    rows = max(1, CACHED_SCORES // k.shape[2])
    made: list[mx.array] = []
    flat = (x.reshape(B * heads, *x.shape[2:]) for x in (q, k, v))
    for one, keys, values in zip(*flat, strict=True):
        if made:
            one = mx.depends(one, made[-1])
        part = partial(attend_by_hand, k=keys, v=values, hide=as_is, unhide=as_is)
        made.append(_in_pieces(part, one, rows))
    return mx.stack(made).reshape(B, heads, T, v.shape[-1])


def _in_pieces(function: Callable[[mx.array], mx.array], q: mx.array, rows: int) -> mx.array:
    """Return what a function makes of queries [..., T, D], so many rows after the other."""
    pieces: list[mx.array] = []
    for i in range(0, q.shape[-2], rows):
        some = q[..., i : i + rows, :]
        if pieces:  # or MLX begins with all of them at once
            some = mx.depends(some, pieces[-1])
        pieces.append(function(some))
    return mx.concatenate(pieces, axis=-2)


class GEGLU(nn.Module):
    """A linear layer whose one half is gated by the exact GELU of the other (arXiv:2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def __call__(self, x: mx.array) -> mx.array:
        """[..., dim_in] -> [..., dim_out]."""
        x, gate = mx.split(self.proj(x), 2, axis=-1)
        return x * nn.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width, then back (diffusers FeedForward)."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = [GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim)]

    def __call__(self, x: mx.array) -> mx.array:
        """[..., dim] -> [..., dim]."""
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a layer norm and around a skip.

    Args:
        dim: Width of the input and of the output.
        num_attention_heads: Number of heads.
        attention_head_dim: Width of one head.
        cross_attention_dim: Width of `encoder_hidden_states`.
        only_cross_attention: Both attentions are to `encoder_hidden_states`.
        upcast_attention: See Attention.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_attention_heads: int,
        attention_head_dim: int,
        cross_attention_dim: int,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()

        def attention(context: int | None) -> Attention:
            return Attention(
                dim,
                heads=num_attention_heads,
                dim_head=attention_head_dim,
                cross_attention_dim=context,
                upcast_attention=upcast_attention,
            )

        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = attention(cross_attention_dim if only_cross_attention else None)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = attention(cross_attention_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)
        self._only_cross_attention = only_cross_attention

    def __call__(self, x: mx.array, encoder_hidden_states: mx.array) -> mx.array:
        """[B, T, dim], and [B, S, cross_attention_dim] -> [B, T, dim]."""
        first = encoder_hidden_states if self._only_cross_attention else None
        x = x + self.attn1(self.norm1(x), first)
        x = x + self.attn2(self.norm2(x), encoder_hidden_states)
        return x + self.ff(self.norm3(x))
