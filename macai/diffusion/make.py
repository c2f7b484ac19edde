"""From a request to finished pictures: the base model, a refiner after it, a larger second pass."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from PIL import Image

from macai.diffusion.denoise import Step
from macai.diffusion.latents import mask_for
from macai.diffusion.pipeline import Pipeline, Request
from macai.errors import UsageError

LARGEST = 4.0  # times the sides: beyond, a second pass has nothing to go by


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What comes after the first pass.

    Attributes:
        refiner: A model that takes over for the last part of the steps; None goes without.
        handover: The share of the way after which it does.
        enlarge: How many times wider and higher a second pass makes the picture; 1 goes without.
        enlarge_strength: How much of the way from noise the second pass goes.
    """

    refiner: Pipeline | None = None
    handover: float = 0.8
    enlarge: float = 1.0
    enlarge_strength: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.enlarge <= LARGEST:
            raise UsageError(f"cannot enlarge {self.enlarge} times", hint=f"1 to {LARGEST:g}")
        if not 0 < self.handover < 1:
            raise UsageError(
                f"a hand-over at {self.handover} is not between 0 and 1", hint="0.8 is usual"
            )


@dataclass(frozen=True, slots=True)
class Progress:
    """A step, and of which pass: "image", "refiner" or "enlarge"."""

    phase: str
    step: Step


def make(
    pipeline: Pipeline, request: Request, extras: Extras | None = None
) -> Generator[Progress, None, np.ndarray]:
    """Make the pictures of a request, and yield after every step.

    Returns:
        float32 [count, H, W, 3] about [-1, 1]; images.to_bytes refuses numbers that are none.

    Raises:
        UsageError, ModelError: See Pipeline.sample.
    """
    extras = extras or Extras()
    _check(pipeline, request, extras)
    pictures = yield from _once(pipeline, request, extras)
    if extras.enlarge > 1:
        larger = _larger(pipeline, request, pictures, extras)
        latents = yield from _follow(pipeline, larger, "enlarge")
        pictures = pipeline.decode(latents)
    return pictures


def enlarged(pictures: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return pictures [B, H, W, 3] resampled (Lanczos) to [B, height, width, 3]."""
    channels = [
        [
            Image.fromarray(np.ascontiguousarray(picture[..., c]), "F").resize(
                (width, height), Image.Resampling.LANCZOS
            )
            for c in range(3)
        ]
        for picture in pictures.astype(np.float32)
    ]
    stacked = np.stack([np.stack([np.asarray(c) for c in of], axis=-1) for of in channels])
    return np.clip(stacked, -1, 1)


def _check(pipeline: Pipeline, request: Request, extras: Extras) -> None:
    """Raise UsageError if one of the passes cannot be, before minutes go into the first."""
    first, rest = request, None
    if extras.refiner is not None:
        first, rest = _halves(request, extras)
        extras.refiner.check(rest)
    pipeline.check(first)
    if extras.enlarge > 1:
        width, height = pipeline.size(request)
        blank = np.broadcast_to(np.float32(0), (1, height, width, 3))
        pipeline.check(_larger(pipeline, request, blank, extras))


def _halves(request: Request, extras: Extras) -> tuple[Request, Request]:
    """Return what the base model makes and what the refiner does."""
    return (
        replace(request, end=extras.handover),
        replace(request, start=extras.handover, controls=()),
    )


def _once(
    pipeline: Pipeline, request: Request, extras: Extras
) -> Generator[Progress, None, np.ndarray]:
    if extras.refiner is None:
        return pipeline.decode((yield from _follow(pipeline, request, "image")))
    first, rest = _halves(request, extras)
    latents = yield from _follow(pipeline, first, "image")
    pipeline.parts.done_with_unet()
    refined = yield from _follow(extras.refiner, replace(rest, latents=latents), "refiner")
    return extras.refiner.decode(refined)


def _larger(pipeline: Pipeline, request: Request, pictures: np.ndarray, extras: Extras) -> Request:
    """Return the second pass: mask and controls are enlarged as the pictures are."""
    factor = pipeline.parts.latents_factor
    height, width = (
        max(factor, round(side * extras.enlarge / factor) * factor) for side in pictures.shape[1:3]
    )
    controls = [
        replace(c, picture=mx.clip(mx.array(enlarged(np.array(c.picture), width, height)), 0, 1))
        for c in request.controls
    ]
    mask = request.mask
    return replace(
        request,
        picture=enlarged(pictures, width, height),
        strength=extras.enlarge_strength,
        mask=None if mask is None else np.array(mask_for(mask, height, width)),
        controls=controls,
    )


def _follow(
    pipeline: Pipeline, request: Request, phase: str
) -> Generator[Progress, None, mx.array]:
    last = None
    for last in pipeline.sample(request):
        yield Progress(phase, last)
    assert last is not None
    return last.latents
