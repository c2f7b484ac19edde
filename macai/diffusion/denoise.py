"""From noise to latents: the loop over a scheduler's timesteps, for text, pictures and masks."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from macai.diffusion.schedulers.base import NoiseSource, Scheduler
from macai.errors import ModelError

Predict = Callable[[mx.array, float, tuple[float, float]], mx.array]
"""A model and what it is told: see Predictor.__call__."""


@dataclass(frozen=True, slots=True)
class Step:
    """One model call of a batch.

    Attributes:
        done: How many calls were made.
        total: How many there are.
        latents: float32 [B, h, w, C], as noisy as the next timestep wants them.
        denoised: The scheduler's guess at the latents without noise, of the same shape.
        seconds: What the call took.
    """

    done: int
    total: int
    latents: mx.array
    denoised: mx.array
    seconds: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What a model without channels for a mask is held to where the mask is 0.

    Attributes:
        latents: The original picture's, [B, h, w, C].
        noise: What was added to them at the start, [B, h, w, C].
        mask: 1 where the picture is made anew, [1, h, w, 1].
    """

    latents: mx.array
    noise: mx.array
    mask: mx.array


def denoise(
    predict: Predict,
    scheduler: Scheduler,
    latents: mx.array,
    *,
    noise: NoiseSource,
    kept: Kept | None = None,
) -> Iterator[Step]:
    """Take the noise out of `latents`, along the scheduler's timesteps; yields after each.

    Args:
        predict: The model and what it is told.
        scheduler: With its timesteps set.
        latents: float32 [B, h, w, C], as noisy as the first timestep wants them.
        noise: For the schedulers that add some at every step.
        kept: For inpainting with a model that has no channels for it.

    Raises:
        ModelError: A prediction is not finite: no picture would come of it.
    """
    total = len(scheduler.timesteps)
    for i, timestep in enumerate(scheduler.timesteps):
        began = time.perf_counter()
        sample = scheduler.scale_model_input(latents, i)
        output = predict(sample, timestep, (i / total, (i + 1) / total))
        latents = scheduler.step(output, i, latents, noise=noise)
        denoised = scheduler.x0
        if kept is not None:
            original = kept.latents
            if i + 1 < total:
                original = scheduler.add_noise(original, kept.noise, i + 1)
            latents = (1 - kept.mask) * original + kept.mask * latents
        finite = mx.all(mx.isfinite(latents))
        mx.eval(latents, denoised, finite)
        if not finite.item():
            raise ModelError(
                f"step {i + 1} of {total}: the latents are not finite",
                hint="use --dtype float32; if they stay so, the weights are damaged",
            )
        yield Step(i + 1, total, latents, denoised, time.perf_counter() - began)
