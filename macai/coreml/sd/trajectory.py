"""From noise to latents twice, by the model and by its packages: how far are they apart?

Errors of a step are carried on by all that follow, so this sees what comparing calls does not.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.sd.component import Component
from macai.coreml.sd.precisions import in_all
from macai.coreml.sd.runner import Precision, Runner, in_batches
from macai.coreml.sd.samples import Arrays
from macai.coreml.sd.verify import cosine, psnr, reference
from macai.diffusion.denoise import denoise
from macai.diffusion.latents import drawing
from macai.diffusion.random import Noise
from macai.diffusion.schedulers import make_scheduler

LEAST_COSINE = 0.999
"""Of the latents after each step, in both arithmetics."""

Run = Callable[[Arrays], np.ndarray]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Which way is taken from noise.

    Attributes:
        steps: Of the package's own scheduler; the model's, where it does not predict noise.
        guidance: Classifier-free; an LCM has its own in it. What a model is drawn with: with more
            than it bears, its colours leave their range and errors grow.
        prompt: One the model knows; None is a photo of an astronaut.
    """

    steps: int = 20
    guidance: float = 7.5
    prompt: str | None = None


class Trajectory:
    """The model's latents after each step, and the packages' beside them."""

    def __init__(
        self,
        course: Course,
        unet: Component,
        told: Arrays,
        *,
        scheduler: Mapping[str, Any],
        channels: int,
        is_guided: bool,
    ) -> None:
        """Describe it.

        Args:
            course: Which one.
            unet: The package.
            told: What the U-Net is told of a negative prompt and a prompt, a row each.
            scheduler: The model's scheduler_config.json.
            channels: Of latents.
            is_guided: Whether the guidance is not in the U-Net already.
        """
        self._course, self._told, self._scheduler = course, told, scheduler
        self._guidance = course.guidance if is_guided else 1.0
        self._batch, self._channels, *self._size = unet.inputs["sample"].shape
        self._latent_channels = channels
        self._wanted: list[np.ndarray] = []
        self.finals: dict[str, np.ndarray] = {}
        """The last latents [1, 4, h, w] by "model", "fp32", "fp16"."""

    def of_model(self, component: Component, module: nn.Module, progress: Progress) -> None:
        """Take the noise out with the module itself, of float32."""

        def run(inputs: Arrays) -> np.ndarray:
            (result,) = reference(component, module, [inputs])
            return result["noise_pred"]

        self._wanted = list(self.latents(run, "the model's trajectory", progress))
        self.finals["model"] = self._wanted[-1]

    def of_packages(self, runner: Runner, progress: Progress) -> dict[str, Any]:
        """Take the noise out with the packages; return how far they go astray.

        Returns:
            "steps", "guidance"; by precision "cosine" after each step, and "psnr" of the last
            latents in dB; "problems" in words.
        """

        def taken(precision: Precision, stop: threading.Event) -> list[np.ndarray]:
            def run(inputs: Arrays) -> np.ndarray:
                return runner.run(inputs, precision=precision, stop=stop).outputs["noise_pred"]

            return list(self.latents(run, f"{precision} trajectory", progress))

        report: dict[str, Any] = {"steps": self._course.steps, "guidance": self._guidance}
        problems = []
        for precision, latents in in_all(taken).items():
            cosines = [cosine(*pair) for pair in zip(latents, self._wanted, strict=True)]
            self.finals[precision] = latents[-1]
            report[precision] = {"cosine": cosines, "psnr": psnr(latents[-1], self._wanted[-1])}
            if min(cosines) < LEAST_COSINE:
                step = cosines.index(min(cosines)) + 1
                problems.append(
                    f"after step {step} the latents' cosine with the model's is "
                    f"{min(cosines):.5f} in {precision}, and {LEAST_COSINE} is the least"
                )
        return report | {"problems": problems}

    def latents(
        self,
        run: Run,
        what: str = "trajectory",
        progress: Progress = lambda what, done, total: None,
    ) -> Iterator[np.ndarray]:
        """Yield the latents [1, 4, h, w] after each step.

        Args:
            run: The U-Net: its inputs by name -> noise_pred.
            what: What `progress` is told.
            progress: Told how far it is.
        """
        h, w = self._size
        behind = self._behind(h, w)

        def predict(sample: mx.array, timestep: float, done: tuple[float, float]) -> mx.array:
            seen = np.concatenate([np.array(sample).transpose(0, 3, 1, 2), *behind], axis=1)
            rows = in_batches(run, seen, timestep, self._told, batch=self._batch)
            output = rows[:1] + self._guidance * (rows[1:] - rows[:1])
            return mx.array(np.ascontiguousarray(output.transpose(0, 2, 3, 1)))

        own = self._scheduler.get("prediction_type", "epsilon") != "epsilon"
        scheduler = make_scheduler("ddim" if own else "swift", self._scheduler)
        scheduler.set_timesteps(self._course.steps)
        noise = drawing([Noise("numpy", 0)])
        start = mx.array(noise((1, h, w, self._latent_channels))) * scheduler.init_noise_sigma
        for step in denoise(predict, scheduler, start, noise=noise):
            progress(what, step.done, step.total)
            yield np.array(step.latents).transpose(0, 3, 1, 2)

    def _behind(self, h: int, w: int) -> list[np.ndarray]:
        """What an inpainting U-Net sees behind the latents: a mask of ones, and zeros."""
        if self._channels == self._latent_channels:
            return []
        zeros = np.zeros((1, self._latent_channels, h, w), np.float32)
        return [np.ones((1, 1, h, w), np.float32), zeros]
