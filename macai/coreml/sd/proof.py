"""Do a bundle's packages compute what its model does? Each part is loaded once, and let go."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.sd.component import Component
from macai.coreml.sd.form import TEXT_ENCODERS, Form, text_names
from macai.coreml.sd.golden import golden
from macai.coreml.sd.manifest import SdManifest
from macai.coreml.sd.palettes import choose
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.samples import Samples
from macai.coreml.sd.sources import Sources
from macai.coreml.sd.trajectory import Trajectory
from macai.coreml.sd.variants import MAIN, Variant, variants
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
    sources = replace(sources, palettes=manifest.palettes)
    trial = Trial(sources, manifest.form(), manifest.sizes(), timesteps)
    reports: dict[str, Report] = {}
    course: Trajectory | None = None
    astray: Report = {}
    for made in trial.groups():
        module = sources.load(made[0])
        trial.try_module(made, module)
        if steps and made[0].name == "Unet":
            course = Trajectory(manifest, trial.samples.told(made[0]), steps=steps)
            course.of_model(made[0], module, progress)
        if strip and course is not None and made[0].name == "VAEDecoder":
            decode = partial(_decoded, made[0], module, scale=manifest)
            write_picture(strip, pictures(course.finals, decode))
        del module
        let_go()
        for component in made:
            parts = manifest.parts(component.name)
            runner = Runner([folder / part.package for part in parts])
            reports |= trial.compare(component, runner, progress)
            if course is not None and component.name == "Unet":
                astray = course.of_packages(runner, progress)
    return summary(reports, astray)


class Trial:
    """What each function of each package is tried with, and what the model makes of it."""

    def __init__(
        self, sources: Sources, form: Form, sizes: Sequence[tuple[int, int]], timesteps: int
    ) -> None:
        self._sources = sources
        self.variants = variants(form, sizes, sources.adapters)
        self._components = [
            {one.name: one for one in sources.components(variant.form)} for variant in self.variants
        ]
        self._samples = [_samples(sources, timesteps) for _ in self.variants]
        self._tried: dict[tuple[str, str], Tried] = {}
        self.golden: dict[str, np.ndarray] = {}
        """What a device can try itself with, "Unet.inputs.sample" and so on: see golden.py."""

    @property
    def samples(self) -> Samples:
        """Main's."""
        return self._samples[0]

    def groups(self) -> Iterator[list[Component]]:
        """Yield main's components, those of one module together."""
        for _, group in groupby(self._components[0].values(), _module_of):
            yield list(group)

    def functions(self, name: str) -> Iterator[tuple[Variant, Component]]:
        """Yield the functions of a package: which it is, and the component as it has it."""
        for variant, components in zip(self.variants, self._components, strict=True):
            yield variant, components[name]

    def try_module(self, made: Sequence[Component], module: nn.Module) -> None:
        """Run a module, of float32, on the samples of components that are made of it."""
        for variant, components, samples in zip(
            self.variants, self._components, self._samples, strict=True
        ):
            own = variant.module(self._sources, made[0], module)
            for main in made:
                component = components[main.name]
                if component.part in ("unet", "vae") and not self._is_new(variant, component):
                    continue
                given = samples.of(component)
                results = reference(component, own, given)
                samples.heard(component, given, results)
                if self._is_new(variant, component):
                    self._tried[component.name, variant.function] = (given, results)
                if variant.function == MAIN:
                    middle = len(given) // 2
                    self.golden |= golden(component, given[middle], results[middle])

    def compare(self, main: Component, runner: Runner, progress: Progress) -> dict[str, Report]:
        """Compare a package's functions, but those that are as main's; return the reports."""
        reports = {}
        for variant, component in self.functions(main.name):
            if (key := (main.name, variant.function)) in self._tried:
                name = main.name if variant.function == MAIN else ":".join(key)
                pairs = self._tried.pop(key)
                function = variant.function
                reports[name] = compare(runner, component, *pairs, progress, function=function)
        return reports

    def _is_new(self, variant: Variant, component: Component) -> bool:
        main = self._components[0][component.name]
        return variant.function == MAIN or variant.changes(component, main)


def with_palettes(
    sources: Sources, form: Form, bits_per_weight: float, progress: Progress
) -> Sources:
    """Return sources whose U-Net has palettes, of bits that are spent where they matter most."""
    trial = Trial(sources, form, (), 2)
    for made in trial.groups():
        if made[0].part not in TEXT_ENCODERS and made[0].name != "Unet":
            continue
        module = sources.load(made[0])
        if made[0].name != "Unet":
            trial.try_module(made, module)
            continue
        samples = trial.samples.of(made[0])
        bits = choose(module, made[0], samples, bits_per_weight, progress=progress)
        let_go()
        return replace(sources, palettes=bits)
    raise ValueError("a model without a U-Net")


def let_go() -> None:
    """Give back the memory of what is done with: a MIL program is one great cycle."""
    gc.collect()
    mx.clear_cache()
    give_back_freed_memory()


def _module_of(component: Component) -> tuple[str, str, str]:
    """Return what components that are made of one module, with the same weights, have in common."""
    own = component.name if component.part == "controlnet" else ""
    return component.part, component.precision, own


def _samples(sources: Sources, timesteps: int) -> Samples:
    checkpoint = sources.checkpoint
    vae = AutoencoderKLConfig.from_dict(checkpoint.configs["vae"])
    return Samples(
        {
            TEXT_ENCODERS[part]: checkpoint.tokenizer(part)
            for part in text_names(checkpoint.configs)
        },
        factor=vae.spatial_scale_factor,
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
    functions = {name: one["lora"] for name, one in manifest.functions.items() if one["lora"]}
    if functions != {name: lora.described() for name, lora in sources.adapters.items()}:
        names = " ".join(
            f"--function {name}={one['name']}:{one['scale']:g}" for name, one in functions.items()
        )
        raise UsageError(
            "these are not the LoRAs that this bundle has functions of",
            hint=f"it was made with {names}" if names else "it was made with none",
        )
    nets = manifest.source.get("controlnets", [])
    if nets != [net.described() for net in sources.controlnets]:
        names = " ".join(f"--controlnet {one['name']}=PATH" for one in nets)
        raise UsageError(
            "these are not the ControlNets that are in this bundle",
            hint=f"it was made with {names}" if names else "it was made with none",
        )
