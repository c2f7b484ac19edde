"""A prompt to a picture with the packages of a bundle alone: what an app will show.

Tokens, noise and scheduler are those of Apple's Swift package (TextEncoder.swift,
StableDiffusionPipeline.swift, StableDiffusionXLPipeline.swift), unless another is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np

from macai.coreml.sd.manifest import SdManifest
from macai.coreml.sd.opened import SdBundle
from macai.diffusion.denoise import denoise
from macai.diffusion.latents import drawing
from macai.diffusion.random import Noise
from macai.diffusion.schedulers import make_scheduler
from macai.diffusion.schedulers.base import Scheduler
from macai.errors import UsageError

Progress = Callable[[str, int, int], None]


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
        picture: To start from: float32 [1, H, W, 3] in [-1, 1], of the bundle's size.
        strength: How much of the way from noise is gone, from `picture`.
        mask: What of `picture` is made anew, float32 [1, H, W, 1] of 0 and 1; for a U-Net that sees
            one.
        controls: Pictures that ControlNets heed, float32 [1, H, W, 3] in [0, 1], by their names;
            "" is the only one.
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
    picture: np.ndarray | None = None
    strength: float = 0.8
    mask: np.ndarray | None = None
    controls: Mapping[str, np.ndarray] = field(default_factory=dict)
    precision: Literal["fp16", "fp32"] = "fp16"
    function: str = "main"


def make_picture(
    folder: Path,
    manifest: SdManifest,
    wanted: Wanted,
    progress: Progress = lambda what, done, total: None,
) -> np.ndarray:
    """Return a picture, float32 [1, H, W, 3] about [-1, 1].

    Raises:
        ModelError: the scheduler is not for this model.
        PackageError: a package that cannot be run, or is not there.
        UsageError: a mask without a picture, or for a U-Net that sees none.
    """
    bundle = SdBundle(folder, manifest, wanted.precision, wanted.function)
    _check(bundle, wanted)
    is_guided = wanted.guidance >= 1
    # The negative prompt first, as Swift has it.
    told = bundle.told([wanted.negative, wanted.prompt] if is_guided else [wanted.prompt])
    behind = bundle.behind(wanted.picture, wanted.mask)
    shown = {
        bundle.controlnet(name): np.ascontiguousarray(picture.transpose(0, 3, 1, 2))
        for name, picture in wanted.controls.items()
    }

    def predict(sample: mx.array, timestep: float, done: tuple[float, float]) -> mx.array:
        seen = np.concatenate([np.array(sample).transpose(0, 3, 1, 2), *behind], axis=1)
        rows = bundle.predict(seen, timestep, told, shown)
        output = rows[:1] if not is_guided else rows[:1] + wanted.guidance * (rows[1:] - rows[:1])
        return mx.array(np.ascontiguousarray(output.transpose(0, 2, 3, 1)))

    scheduler = make_scheduler(wanted.scheduler, manifest.scheduler)
    strength = None if wanted.picture is None else wanted.strength
    scheduler.set_timesteps(wanted.steps, strength=strength)
    source = Noise(wanted.rng, wanted.seed)
    latents = _begin(bundle, wanted, scheduler, source)
    for step in denoise(predict, scheduler, latents, noise=drawing([source])):
        latents = step.latents
        progress("taking noise out", step.done, step.total)
    # The package decodes its scheduler's last guess, not its last sample.
    z = np.array(scheduler.decoded(latents)) / manifest.scaling_factor + manifest.shift_factor
    image = bundle.run("VAEDecoder", {"z": z.transpose(0, 3, 1, 2).astype(np.float32)})["image"]
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1))


def _begin(bundle: SdBundle, wanted: Wanted, scheduler: Scheduler, source: Noise) -> mx.array:
    """Return the first latents: noise, or as much of it as the strength asks on a picture's.

    The package draws the noise first, then what the picture's latents are sampled with; where a
    mask has all made anew, nothing is left of the picture but what the U-Net sees behind.
    """
    channels, rows, columns = bundle.latents()
    noise = mx.array(drawing([source])((1, rows, columns, channels)))
    if wanted.picture is None or (bundle.paints and wanted.strength == 1):
        return noise * scheduler.init_noise_sigma
    return scheduler.add_noise(mx.array(bundle.encode(wanted.picture, source)), noise, 0)


def _check(bundle: SdBundle, wanted: Wanted) -> None:
    if wanted.mask is not None and wanted.picture is None:
        raise UsageError("a mask without a picture", hint="add --image photo.png")
    if wanted.mask is not None and not bundle.paints:
        raise UsageError(
            "this bundle's U-Net does not see a mask",
            hint="macai export sd of a model for inpainting makes one that does",
        )
