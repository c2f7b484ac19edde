"""CLIP's text encoders (arXiv:2103.00020): OpenAI's ViT-L, and H and bigG of OpenCLIP.

Parameters have the names of transformers' CLIPTextModel in the files people have, which begin with
"text_model."; `macai.diffusion.loading.sources` knows others. There is no tokenizer here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.configs import read_config, unsupported
from macai.errors import ModelError

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "quick_gelu": nn.gelu_fast_approx,
    "gelu": nn.gelu,
}

LEGACY_EOS = 2  # in configs from before transformers 4.31, whatever the tokenizer's end is

# Added to the scores of tokens to come: large enough that their softmax is 0, and finite in
# float16, where the largest number there is would overflow on the first negative score.
HIDDEN = -1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class CLIPTextConfig:
    """The keys of a text encoder's config.json that its computation depends on."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise unsupported("CLIPText", "hidden_act", self.hidden_act, known=known)
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"CLIPText's config.json: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}",
                hint="is the file whole?",
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CLIPTextConfig":
        """Read a config.json; ModelError names what is wrong in it or not supported."""
        return read_config(cls, config)


@dataclass(frozen=True, slots=True)
class CLIPTextOutput:
    """What a text encoder says of B rows of L tokens, in the type of its weights.

    Attributes:
        last_hidden_state: [B, L, D], normed.
        pooled_output: [B, D], the last hidden state at the end of the text.
        text_embeds: [B, projection_dim], the pooled output projected; None without a projection.
        hidden_states: The embeddings, then every layer's result, each [B, L, D]; none is normed.
    """

    last_hidden_state: mx.array
    pooled_output: mx.array
    text_embeds: mx.array | None
    hidden_states: tuple[mx.array, ...]


class CLIPTextEmbeddings(nn.Module):
    """Token plus position embeddings."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, input_ids: mx.array) -> mx.array:
        """int32 [B, L] -> [B, L, D]."""
        positions = mx.arange(input_ids.shape[1])
        return self.token_embedding(input_ids) + self.position_embedding(positions)


class CLIPAttention(nn.Module):
    """Self-attention with a bias in each projection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self._heads = config.num_attention_heads
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.q_proj = nn.Linear(D, D)
        self.out_proj = nn.Linear(D, D)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        """[B, L, D], and mask [L, L] added to the scores -> [B, L, D]."""
        q, k, v = (self._split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        scale = q.shape[-1] ** -0.5
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return self.out_proj(out.swapaxes(1, 2).reshape(x.shape))

    def _split(self, x: mx.array) -> mx.array:
        B, L, _ = x.shape
        return x.reshape(B, L, self._heads, -1).swapaxes(1, 2)


class CLIPMLP(nn.Module):
    """Two linear layers around the config's activation."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """[..., D] -> [..., D]."""
        return self.fc2(self._activation(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    """Attention and MLP, each after a norm and beside a skip."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = [CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array, mask: mx.array) -> tuple[mx.array, ...]:
        """[B, L, D] -> `x` and every layer's result, each [B, L, D]."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return tuple(states)


class CLIPTextTransformer(nn.Module):
    """Embeddings, encoder and the norm after it; what "text_model." holds."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self._eos_token_id = config.eos_token_id
        self._longest = config.max_position_embeddings

    def __call__(self, input_ids: mx.array) -> CLIPTextOutput:
        """int32 [B, L] -> CLIPTextOutput without text_embeds."""
        L = input_ids.shape[1]
        if self._longest < L:
            raise ValueError(f"{L} tokens, and the model has positions for {self._longest}")
        embedded = self.embeddings(input_ids)
        states = self.encoder(embedded, causal_mask(L, embedded.dtype))
        last = self.final_layer_norm(states[-1])
        ends = end_of_text(input_ids, self._eos_token_id)
        pooled = mx.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        return CLIPTextOutput(last, pooled, None, states)


class CLIPTextModel(nn.Module):
    """transformers' CLIPTextModel."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)

    def __call__(self, input_ids: mx.array) -> CLIPTextOutput:
        """int32 [B, L], L at most max_position_embeddings; ids that a tokenizer padded to 77."""
        return self.text_model(input_ids)


class CLIPTextModelWithProjection(nn.Module):
    """transformers' CLIPTextModelWithProjection: the pooled output is projected as well."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, input_ids: mx.array) -> CLIPTextOutput:
        """int32 [B, L], L at most max_position_embeddings; ids that a tokenizer padded to 77."""
        out = self.text_model(input_ids)
        embeds = self.text_projection(out.pooled_output)
        return CLIPTextOutput(out.last_hidden_state, out.pooled_output, embeds, out.hidden_states)


def causal_mask(length: int, dtype: mx.Dtype) -> mx.array:
    """Return what hides later tokens, [length, length]: 0 where a row may look, else HIDDEN."""
    rows = mx.arange(length)
    return mx.where(rows[:, None] >= rows, 0.0, HIDDEN).astype(dtype)


def end_of_text(input_ids: mx.array, eos_token_id: int) -> mx.array:
    """Return where each row of int32 [B, L] ends, int [B]: at its first `eos_token_id`.

    With the legacy id 2, at its largest id, the first of them: the end has the largest of CLIP's
    vocabulary. A row without its end gives 0, as in transformers.
    """
    if eos_token_id == LEGACY_EOS:
        return mx.argmax(input_ids, axis=-1)
    return mx.argmax((input_ids == eos_token_id).astype(mx.int32), axis=-1)
