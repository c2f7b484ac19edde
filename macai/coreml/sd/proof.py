"""Do a bundle's packages compute what its model does? Each part is loaded once, and let go."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.sd.component import Component
from macai.coreml.sd.form import TEXT_ENCODERS, Form, picture_size, text_names
from macai.coreml.sd.manifest import SdManifest
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.samples import Samples
from macai.coreml.sd.sources import Sources
from macai.coreml.sd.trajectory import Trajectory
from macai.coreml.sd.verify import compare, reference
from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.images import to_bytes, write_picture
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig
from macai.errors import UsageError
from macai.models.heap import give_back_freed_memory

Progress = Callable[[str, int, int], None]
Report = dict[str, Any]
Tried = tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]


def verify_sd(
    manifest: SdManifest,
    folder: Path,
    sources: Sources,
    *,
    timesteps: int = 5,
    steps: int = 0,
    strip: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Compare all packages of a bundle with the modules of its model, opened in float32.

    Args:
        manifest: The bundle's.
        folder: The bundle.
        sources: What it was made of.
        timesteps: How many of 20 steps' times the U-Net is compared at.
        steps: Of a trajectory that the U-Net makes from noise to latents; 0 makes none.
        strip: Where to write, as PNG, the pictures at its end: the model's, the packages' in
            float32 and in float16, and eight times what differs.
        progress: Told what is being done.

    Raises:
        UsageError: the model, the LoRAs or the ControlNets are not those it was made of.
    """
    _check_same(manifest, sources)
    form = manifest.form()
    samples = make_samples(sources, form, timesteps)
    reports = {}
    course: Trajectory | None = None
    astray: Report = {}
    for _, group in groupby(sources.components(form), module_of):
        made = list(group)
        module = sources.load(made[0])
        tried = try_module(module, made, samples)
        if steps and made[0].name == "Unet":
            course = Trajectory(manifest, samples.told(made[0]), steps=steps)
            course.of_model(made[0], module, progress)
        if strip and course is not None and made[0].name == "VAEDecoder":
            decode = partial(_decoded, made[0], module, scale=manifest)
            write_picture(strip, pictures(course.finals, decode))
        del module
        let_go()
        for component in made:
            runner = Runner([folder / manifest.packages[component.name].package])
            pairs = tried.pop(component.name)
            reports[component.name] = compare(runner, component, *pairs, progress)
            if course is not None and component.name == "Unet":
                astray = course.of_packages(runner, progress)
    return summary(reports, astray)


def let_go() -> None:
    """Give back the memory of what is done with: a MIL program is one great cycle."""
    gc.collect()
    mx.clear_cache()
    give_back_freed_memory()


def module_of(component: Component) -> tuple[str, str, str]:
    """Return what components that are made of one module, with the same weights, have in common."""
    own = component.name if component.part == "controlnet" else ""
    return component.part, component.precision, own


def try_module(module: nn.Module, made: Sequence[Component], samples: Samples) -> dict[str, Tried]:
    """Return what each component is tried with, and what the module makes of it."""
    tried = {}
    for component in made:
        given = samples.of(component)
        results = reference(component, module, given)
        samples.heard(component, given, results)
        tried[component.name] = (given, results)
    return tried


def make_samples(sources: Sources, form: Form, timesteps: int) -> Samples:
    """Return what the packages of a model are tried with."""
    checkpoint = sources.checkpoint
    vae = AutoencoderKLConfig.from_dict(checkpoint.configs["vae"])
    return Samples(
        {
            TEXT_ENCODERS[part]: checkpoint.tokenizer(part)
            for part in text_names(checkpoint.configs)
        },
        size=picture_size(checkpoint.configs, form),
        scaling_factor=vae.scaling_factor,
        channels=vae.latent_channels,
        train_timesteps=int(checkpoint.scheduler_config.get("num_train_timesteps", 1000)),
        timesteps=timesteps,
    )


def summary(reports: dict[str, Report], trajectory: Report | None = None) -> Report:
    """Return the comparisons of all packages as one, and with them the trajectory's."""
    problems = [f"{name}: {p}" for name, report in reports.items() for p in report["problems"]]
    made = {"trajectory": trajectory} if trajectory else {}
    problems += (trajectory or {}).get("problems", [])
    return {"packages": reports, **made, "problems": problems, "passed": not problems}


def pictures(
    finals: dict[str, np.ndarray], decode: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return pictures of latents side by side, and what differs between the first and the last.

    Args:
        finals: Latents [1, 4, h, w] by whose they are, the model's first.
        decode: Latents to a picture, float32 [H, W, 3] about [-1, 1].

    Returns:
        uint8 [H, N W, 3].
    """
    made = [decode(latents) for latents in finals.values()]
    differs = np.clip(8 * np.abs(made[-1] - made[0]) - 1, -1, 1)
    strip: np.ndarray = to_bytes(np.concatenate([*made, differs], axis=1)[None])[0]
    return strip


def _decoded(
    component: Component, module: nn.Module, latents: np.ndarray, *, scale: SdManifest
) -> np.ndarray:
    z = latents / scale.scaling_factor + scale.shift_factor
    (result,) = reference(component, module, [{"z": z.astype(np.float32)}])
    return np.ascontiguousarray(result["image"][0].transpose(1, 2, 0))


def _check_same(manifest: SdManifest, sources: Sources) -> None:
    if manifest.source["fingerprint"] != fingerprint(sources.checkpoint):
        raise UsageError(
            f"{sources.checkpoint.path} has other weights than the model this bundle was made of, "
            f"{manifest.source['model']}"
        )
    wanted = manifest.source["loras"]
    if wanted != [lora.described() for lora in sources.loras]:
        names = " ".join(f"--lora {one['name']}:{one['scale']:g}" for one in wanted)
        raise UsageError(
            "these are not the LoRAs that are in this bundle",
            hint=f"it was made with {names}" if names else "it was made with none",
        )
    nets = manifest.source.get("controlnets", [])
    if nets != [net.described() for net in sources.controlnets]:
        names = " ".join(f"--controlnet {one['name']}=PATH" for one in nets)
        raise UsageError(
            "these are not the ControlNets that are in this bundle",
            hint=f"it was made with {names}" if names else "it was made with none",
        )
