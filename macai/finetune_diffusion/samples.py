"""Pictures made while a model is trained."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from macai.diffusion.images import to_bytes
from macai.diffusion.loading import Checkpoint, Models
from macai.diffusion.make import make
from macai.diffusion.models.autoencoder_kl import AutoencoderKL
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.training.base import Base
from macai.diffusion.training.examples import Example, Pixels
from macai.recipe.diffusion import Sample

SHOWN = 4  # captions that are sampled, or pictures decoded, where no prompts are given
Bytes = NDArray[np.uint8]


def sampler(
    base: Base,
    modules: Mapping[str, nn.Module],
    options: Sample,
    captions: Sequence[str],
    side: int,
) -> Callable[[], Bytes]:
    """Return what makes a picture of each prompt, with the modules' weights as they then are.

    Args:
        base: Their configs and tokenizers.
        modules: U-Net, autoencoder and text encoders by component.
        options: Of the recipe.
        captions: Sampled if the recipe has no prompts, the first few.
        side: Of the pictures, in pixels.

    Raises:
        UsageError: the model's scheduler cannot take so many steps.
    """
    tokenizers: dict[str, ClipTokenizer] = {n: base.tokenizer(n) for n in base.text_encoders}
    models = Models(modules, base.configs, base.scheduler_config, tokenizers)
    # What Parts asks of a checkpoint, Models has too.
    pipeline = Pipeline(Parts(cast(Checkpoint, models), short_memory=False))
    prompts = options.prompts or tuple(dict.fromkeys(captions))[:SHOWN]
    request = Request(
        prompt="",
        width=side,
        height=side,
        steps=options.steps,
        guidance=options.guidance,
        weighted=False,
    )
    if options.every:
        pipeline.check(request)  # now, not after hours

    def sample() -> Bytes:
        return grid(
            [
                _made(pipeline, replace(request, prompt=prompt, seed=options.seed + number))
                for number, prompt in enumerate(prompts)
            ]
        )

    return sample


def decoder(vae: AutoencoderKL, pixels: Pixels, examples: Sequence[Example]) -> Callable[[], Bytes]:
    """Return what puts a few pictures above what comes of them through the autoencoder."""
    # Those of the size that most have, so that they fit side by side.
    size = max((e.size for e in examples), key=lambda s: sum(e.size == s for e in examples))
    shown = [e for e in examples if e.size == size][: 2 * SHOWN]

    def sample() -> Bytes:
        given = np.concatenate([pixels(e) for e in shown])
        made = np.array(vae.decode(vae.encode(mx.array(given)).mode()).astype(mx.float32))
        rows = [grid(list(to_bytes(row)), columns=len(shown)) for row in (given, made)]
        return np.concatenate(rows)

    return sample


def grid(pictures: Sequence[Bytes], columns: int = 0) -> Bytes:
    """Return pictures [H, W, 3] of one size as one, white where there are none."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = -(-len(pictures) // columns)
    height, width, _ = pictures[0].shape
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + height, x : x + width] = picture
    return sheet


def _made(pipeline: Pipeline, request: Request) -> Bytes:
    steps: Any = make(pipeline, request)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return to_bytes(done.value)[0]
