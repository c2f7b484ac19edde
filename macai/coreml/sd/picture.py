"""A prompt to a picture with the packages of a bundle alone: what an app will show.

Tokens, noise and scheduler are those of Apple's Swift package (TextEncoder.swift,
StableDiffusionPipeline.swift, StableDiffusionXLPipeline.swift), unless another is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np

from macai.coreml.sd.form import TEXT_ENCODERS
from macai.coreml.sd.manifest import SdManifest
from macai.coreml.sd.runner import Runner, in_batches
from macai.diffusion.denoise import denoise
from macai.diffusion.latents import drawing
from macai.diffusion.random import Noise
from macai.diffusion.schedulers import make_scheduler
from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.tokenizer.vocabulary import END

Progress = Callable[[str, int, int], None]
Arrays = dict[str, np.ndarray]
# The package pads the second encoder's prompt with the token of id 0.
_PADDING = {"TextEncoder": END, "TextEncoder2": "!"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What picture to make.

    Attributes:
        prompt: What it shows.
        negative: What it keeps away from.
        steps: Of the scheduler.
        guidance: Classifier-free guidance; below 1 does without.
        seed: Of the noise.
        scheduler: "swift" for the package's own, or another in schedulers.SCHEDULERS.
        rng: "numpy", as the package draws, or another of random.Noise.
        precision: "fp16" rounds every value of a float16 program, "fp32" only its weights.
        function: Of the packages: "main", or one in SdManifest.functions.
    """

    prompt: str
    negative: str = ""
    steps: int = 20
    guidance: float = 7.5
    seed: int = 0
    scheduler: str = "swift"
    rng: str = "numpy"
    precision: Literal["fp16", "fp32"] = "fp16"
    function: str = "main"


class SdBundle:
    """The packages of a bundle, run by macai's own runtime."""

    def __init__(
        self,
        folder: Path,
        manifest: SdManifest,
        precision: Literal["fp16", "fp32"],
        function: str = "main",
    ) -> None:
        self.manifest, self._folder, self._precision = manifest, folder, precision
        self._function = function
        self.width, self.height = manifest.size(function)
        self.tokenizer = ClipTokenizer.from_folder(folder / "Resources")
        self._opened: dict[str, Runner] = {}

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """Run a package."""
        if name not in self._opened:
            paths = [self._folder / part.package for part in self.manifest.parts(name)]
            self._opened[name] = Runner(paths)
        opened = self._opened[name]
        return opened.run(inputs, precision=self._precision, function=self._function).outputs

    def latents(self) -> tuple[int, int, int]:
        """Return channels, height and width of the latents."""
        _, channels, rows, _ = self.manifest.packages["VAEDecoder"].inputs["z"]["shape"]
        factor = self.manifest.height // rows
        return channels, self.height // factor, self.width // factor

    def told(self, prompts: list[str]) -> Arrays:
        """Return what the U-Net is told of prompts, a row each, but for the time."""
        hidden, pooled = [], np.empty(0)
        for name in TEXT_ENCODERS.values():
            if name not in self.manifest.packages:
                continue
            ids = self.tokenizer.swift_ids(prompts, padding=_PADDING[name]).astype(np.float32)
            said = [self.run(name, {"input_ids": row[None]}) for row in ids]
            first = next(iter(self.manifest.packages[name].outputs))
            hidden.append(np.concatenate([one[first] for one in said]))
            pooled = np.concatenate([one["pooled_outputs"] for one in said])
        states = np.concatenate(hidden, axis=-1).swapaxes(1, 2)[:, :, None]
        told = {"encoder_hidden_states": np.ascontiguousarray(states)}
        if spec := self.manifest.unet_inputs().get("time_ids"):
            width, height = float(self.width), float(self.height)
            last = [height, width] if spec["shape"][1] == 6 else [6.0]  # aesthetic score
            row = np.array([[height, width, 0, 0, *last]], np.float32)
            told |= {"time_ids": np.repeat(row, len(prompts), axis=0), "text_embeds": pooled}
        return told

    def behind(self) -> list[np.ndarray]:
        """Return what an inpainting U-Net sees behind the latents: all is to be painted anew.

        That is a mask of ones [1, 1, h, w], and the latents of a grey picture [1, 4, h, w].
        """
        latents, rows, columns = self.latents()
        if self.manifest.unet_inputs()["sample"]["shape"][1] == latents:
            return []
        grey = np.zeros((1, 3, self.height, self.width), np.float32)
        means = self.run("VAEEncoder", {"x": grey})["latent"][:, :latents]
        moved = (means - self.manifest.shift_factor) * self.manifest.scaling_factor
        return [np.ones((1, 1, rows, columns), np.float32), moved]

    def predict(self, sample: np.ndarray, timestep: float, told: Arrays) -> np.ndarray:
        """Return the U-Net's [rows, 4, h, w] for a sample [1, N, h, w] and each row of `told`."""

        def run(inputs: Arrays) -> np.ndarray:
            return self.run("Unet", inputs)["noise_pred"]

        return in_batches(run, sample, timestep, told, batch=self.manifest.batch)


def make_picture(
    folder: Path,
    manifest: SdManifest,
    wanted: Wanted,
    progress: Progress = lambda what, done, total: None,
) -> np.ndarray:
    """Return a picture, float32 [1, H, W, 3] about [-1, 1].

    Raises:
        ModelError: the scheduler is not for this model.
        PackageError: a package that cannot be run.
    """
    bundle = SdBundle(folder, manifest, wanted.precision, wanted.function)
    is_guided = wanted.guidance >= 1
    # The negative prompt first, as Swift has it.
    told = bundle.told([wanted.negative, wanted.prompt] if is_guided else [wanted.prompt])

    behind = bundle.behind()

    def predict(sample: mx.array, timestep: float, done: tuple[float, float]) -> mx.array:
        seen = np.concatenate([np.array(sample).transpose(0, 3, 1, 2), *behind], axis=1)
        rows = bundle.predict(seen, timestep, told)
        output = rows[:1] if not is_guided else rows[:1] + wanted.guidance * (rows[1:] - rows[:1])
        return mx.array(np.ascontiguousarray(output.transpose(0, 2, 3, 1)))

    scheduler = make_scheduler(wanted.scheduler, manifest.scheduler)
    scheduler.set_timesteps(wanted.steps)
    channels, rows, columns = bundle.latents()
    noise = drawing([Noise(wanted.rng, wanted.seed)])
    latents = mx.array(noise((1, rows, columns, channels))) * scheduler.init_noise_sigma
    for step in denoise(predict, scheduler, latents, noise=noise):
        latents = step.latents
        progress("taking noise out", step.done, step.total)
    # The package decodes its scheduler's last guess, not its last sample.
    z = np.array(scheduler.decoded(latents)) / manifest.scaling_factor + manifest.shift_factor
    image = bundle.run("VAEDecoder", {"z": z.transpose(0, 3, 1, 2).astype(np.float32)})["image"]
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1))
