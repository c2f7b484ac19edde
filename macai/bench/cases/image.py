"""Pictures of Stable Diffusion: what each step takes, and what comes before and after them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from macai.bench.cases.held import Held
from macai.bench.figure import Case, Figure, Work
from macai.bench.work import work_of
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.make import make
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request

STEPS = {True: 4, False: 10}


def open_image(path: Path, subject: str, *, quick: bool) -> list[Case]:
    """Open a model; it is loaded with the first picture, as `macai image` does it."""
    dtype = "float32" if mx.default_device() == mx.cpu else "float16"
    pipeline = Pipeline(Parts(open_checkpoint(path, dtype=dtype)))
    batches = (1,) if quick else (1, 4)
    cases: list[Case] = [Pictures(pipeline, subject, batch, STEPS[quick]) for batch in batches]
    return [*cases, Held("image", subject)]


class Pictures:
    """The same pictures again and again, at the model's own size, with guidance."""

    def __init__(self, pipeline: Pipeline, subject: str, batch: int, steps: int) -> None:
        self._pipeline = pipeline
        self._request = Request(prompt="a lighthouse at dusk", count=batch, steps=steps, seed=1)
        width, height = pipeline.size(self._request)
        common: dict[str, Any] = {
            "section": "image",
            "subject": subject,
            "parameters": {"size": f"{width}x{height}", "batch": batch},
            "better": "lower",
        }
        rate: dict[str, Any] = common | {
            "better": "higher",
            "unit": "steps/s",
            "work": self._work(),
        }
        self.figures: Mapping[str, Figure] = {
            "steps": Figure(name="denoising", **rate),
            "text": Figure(name="text", unit="s", **common),
            "decode": Figure(name="decoding", unit="s", **common),
            "picture": Figure(name=f"picture of {steps} steps", unit="s", **common),
            "peak": Figure(name="peak memory", unit="bytes", **common),
        }

    def sample(self) -> Mapping[str, float]:
        """Make the pictures once."""
        mx.reset_peak_memory()
        began = time.perf_counter()
        first = last = began
        making = make(self._pipeline, self._request)
        seconds = []
        for made in making:
            last = time.perf_counter()
            seconds.append(made.step.seconds)
            first = first if len(seconds) > 1 else last - made.step.seconds
        ended = time.perf_counter()
        return {
            "steps": len(seconds) / sum(seconds),
            "text": first - began,
            "decode": ended - last,
            "picture": ended - began,
            "peak": float(mx.get_peak_memory()),
        }

    def _work(self) -> Work:
        """Of one step of all pictures: the U-Net, for prompt and negative prompt."""
        width, height = self._pipeline.size(self._request)
        parts, factor = self._pipeline.parts, self._pipeline.parts.latents_factor
        predict = self._pipeline.predictor(self._request, width, height)
        shape = (self._request.count, height // factor, width // factor, parts.latent_channels)
        return work_of(lambda sample: predict(sample, 500.0), [mx.zeros(shape)], parts.unet)
