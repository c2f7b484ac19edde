"""What is minimised. Sums over pictures: the mean of a step is over all its parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.conditioning import TextEncoder
from macai.diffusion.models.autoencoder_kl import AutoencoderKL
from macai.diffusion.models.unet_2d_condition import UNet2DConditionModel

GRADIENT_SCALES = (1, 2, 4)  # pixels: edges, and shapes that a blur of a pixel or two leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingBatch:
    """Pictures of one size with noise in them, and what is to be said of it.

    Attributes:
        noisy: float32 [B, h, w, C], what the U-Net sees.
        target: float32 [B, h, w, C], what it is to predict.
        timesteps: float32 [B].
        weights: float32 [B], of each picture's loss.
        hidden: [B, T, D], the text encoders' states; None where `ids` are given.
        pooled: [B, P], for XL; else None.
        ids: Of each text encoder's tokenizer, int32 [B, 77], where they are trained; else empty.
        time_ids: float32 [B, N], for XL; else None.
        images: Pictures that the loss is to be divided by: class pictures do not count.
    """

    noisy: mx.array
    target: mx.array
    timesteps: mx.array
    weights: mx.array
    hidden: mx.array | None
    pooled: mx.array | None
    ids: Sequence[mx.array]
    time_ids: mx.array | None
    images: int

    @property
    def computed(self) -> int:
        """All pictures, class pictures included."""
        return self.noisy.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBatch:
    """Pictures of one size.

    Attributes:
        pixels: float32 [B, H, W, 3] in [-1, 1].
        noise: float32 [B, h, w, C], what the latents are drawn with.
    """

    pixels: mx.array
    noise: mx.array

    @property
    def images(self) -> int:
        """How many there are."""
        return self.pixels.shape[0]

    computed = images


class Denoising(nn.Module):
    """A U-Net and the text encoders that are trained with it.

    Attributes:
        unet: The denoiser.
        text_encoders: Those whose states depend on what is trained; none if none is.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoders: Sequence[TextEncoder]) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoders = list(text_encoders)


def denoising_loss(model: Denoising, batch: DenoisingBatch) -> mx.array:
    """Return the weighted squared errors, each a mean over its picture, summed over pictures.

    float32 []. Source: Ho et al., arXiv:2006.11239, equation 14; diffusers' train_text_to_image.py.
    """
    hidden, pooled = batch.hidden, batch.pooled
    if hidden is None:
        hidden, pooled = text_states(model.text_encoders, batch.ids, xl=batch.time_ids is not None)
    predicted = model.unet(
        batch.noisy, batch.timesteps, hidden, text_embeds=pooled, time_ids=batch.time_ids
    )
    errors = (predicted.astype(mx.float32) - batch.target).square().mean(axis=(1, 2, 3))
    return (errors * batch.weights).sum()


def text_states(
    encoders: Sequence[TextEncoder], ids: Sequence[mx.array], *, xl: bool
) -> tuple[mx.array, mx.array | None]:
    """Return states [B, T, D] and for XL pooled ones [B, P] of ids, int32 [B, T] an encoder.

    As `macai.diffusion.conditioning.encode`, for several captions of one chunk each.
    """
    outputs = [encoder(rows) for encoder, rows in zip(encoders, ids, strict=True)]
    if not xl:
        return mx.concatenate([o.last_hidden_state for o in outputs], axis=-1), None
    hidden = mx.concatenate([o.hidden_states[-2] for o in outputs], axis=-1)
    return hidden, outputs[-1].text_embeds


def autoencoder_loss(
    model: AutoencoderKL, batch: PixelBatch, *, kl_weight: float, gradient_weight: float
) -> mx.array:
    """Return absolute errors, errors of gradients and divergences, summed over pictures.

    float32 []; each picture's errors are means over its values, the divergence is divided by their
    number as well. Source: Rombach et al., arXiv:2112.10752, without its perceptual and adversarial
    terms, for which other networks would be needed.
    """
    posterior = model.encode(batch.pixels)
    made = model.decode(posterior.sample(batch.noise)).astype(mx.float32)
    values = made[0].size
    loss = mx.abs(made - batch.pixels).mean(axis=(1, 2, 3)).sum()
    if kl_weight:
        loss = loss + kl_weight / values * posterior.kl().sum()
    if gradient_weight:
        loss = loss + gradient_weight * gradient_error(made, batch.pixels).sum()
    return loss


def gradient_error(made: mx.array, wanted: mx.array) -> mx.array:
    """Return how much neighbouring pixels differ otherwise than they should, [B].

    The mean absolute error of differences along both sides, over pictures [B, H, W, C] of full,
    half and quarter size; sizes of less than two pixels are left out.
    """
    terms = []
    difference = made - wanted  # all that follows is linear but for the magnitude
    for scale in GRADIENT_SCALES:
        small = _smaller(difference, scale)
        if min(small.shape[1:3]) < 2:
            break
        down, across = small[:, 1:] - small[:, :-1], small[:, :, 1:] - small[:, :, :-1]
        terms += [mx.abs(d).mean(axis=(1, 2, 3)) for d in (down, across)]
    return sum(terms, mx.zeros(made.shape[0])) / max(len(terms), 1)


def _smaller(x: mx.array, scale: int) -> mx.array:
    """Return the means of squares of so many pixels a side; what is over is left out."""
    B, H, W, C = x.shape
    h, w = H // scale, W // scale
    x = x[:, : h * scale, : w * scale].reshape(B, h, scale, w, scale, C)
    return x.mean(axis=(2, 4))
