"""What the U-Net is told about a prompt: hidden states of the text encoders, and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from macai.diffusion.models.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from macai.diffusion.prompt import Chunks, apply_weights

TextEncoder = CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A prompt as the U-Net reads it.

    Attributes:
        hidden: [1, 77 * chunks, D], one text encoder's states beside the other's.
        pooled: [1, P], the projection of the last encoder; None where the U-Net has no use for it.
    """

    hidden: mx.array
    pooled: mx.array | None

    def zeros(self) -> "Conditioning":
        """Return what SDXL is told without a negative prompt (force_zeros_for_empty_prompt)."""
        pooled = None if self.pooled is None else mx.zeros_like(self.pooled)
        return Conditioning(mx.zeros_like(self.hidden), pooled)


def encode(
    encoders: Sequence[TextEncoder],
    prompts: Sequence[Chunks],
    *,
    pooled: bool,
    clip_skip: int = 0,
) -> Conditioning:
    """Encode one prompt with every text encoder of a model.

    Args:
        encoders: One (SD, the XL refiner) or two (SDXL).
        prompts: The prompt in the ids of each encoder's tokenizer.
        pooled: Whether the U-Net is of the XL family: it reads the layer before the last, without
            the final norm, and the pooled projection; others read the last layer's, normed.
        clip_skip: How many more of the last layers are left out.

    Source: diffusers, StableDiffusionPipeline.encode_prompt, StableDiffusionXLPipeline's.
    """
    hidden, vector = [], None
    for encoder, chunks in zip(encoders, prompts, strict=True):
        output = encoder(mx.array(chunks.ids))
        if pooled:
            states = output.hidden_states[-(clip_skip + 2)]
        elif clip_skip:
            skipped = output.hidden_states[-(clip_skip + 1)]
            states = encoder.text_model.final_layer_norm(skipped)
        else:
            states = output.last_hidden_state
        if chunks.weighted:
            states = apply_weights(states, chunks.weights)
        hidden.append(states.reshape(1, -1, states.shape[-1]))
        vector = output.text_embeds
    if not pooled:
        return Conditioning(mx.concatenate(hidden, axis=-1), None)
    assert vector is not None, "an XL model's last text encoder has a projection"
    return Conditioning(mx.concatenate(hidden, axis=-1), vector[:1])


def time_ids(
    width: int, height: int, *, count: int, aesthetic_score: float | None = None
) -> mx.array:
    """Return the sizes an XL U-Net is conditioned on: float32 [1, 6], or [1, 5] for the refiner.

    They are of a picture that was neither scaled nor cropped: original height and width, crop top
    and left, then target height and width (6), or an aesthetic score (5).

    Source: SDXL paper, 2.2; diffusers, StableDiffusionXLPipeline._get_add_time_ids.
    """
    last = [float(height), float(width)] if aesthetic_score is None else [aesthetic_score]
    ids = [float(height), float(width), 0.0, 0.0, *last]
    assert len(ids) == count, f"the U-Net wants {count} time ids"
    return mx.array([ids])


def guidance_embedding(guidance: float, width: int) -> mx.array:
    """Return a guidance scale as an LCM's U-Net reads it: float32 [1, width].

    Source: diffusers, LatentConsistencyModelPipeline.get_guidance_scale_embedding.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float64) * -(np.log(10000.0) / (half - 1)))
    angles = (guidance - 1.0) * 1000.0 * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles)])
    return mx.array(np.pad(embedding, (0, width % 2))[None].astype(np.float32))
