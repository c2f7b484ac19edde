"""What packages are tried with, what the model makes of it, and how close they come."""

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.sd.blocks import departures, first_departure
from macai.coreml.sd.component import Component
from macai.coreml.sd.form import TEXT_ENCODERS, Form, text_names
from macai.coreml.sd.golden import golden
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.samples import Samples
from macai.coreml.sd.sources import Sources, module_of
from macai.coreml.sd.strip import decoder, pictures
from macai.coreml.sd.trajectory import Course, Trajectory
from macai.coreml.sd.variants import MAIN, Variant, variants
from macai.coreml.sd.verify import compare, reference
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig
from macai.models.heap import give_back_freed_memory

Progress = Callable[[str, int, int], None]
Report = dict[str, Any]
Tried = tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]


class Trial:
    """Each function of each package, tried once: first the module, then the package."""

    def __init__(
        self,
        sources: Sources,
        form: Form,
        sizes: Sequence[tuple[int, int]],
        timesteps: int,
        *,
        course: Course | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """Prepare it.

        Args:
            sources: What the packages are made of.
            form: See Form.
            sizes: Of functions for other pictures.
            timesteps: How many of 20 steps' times a U-Net is tried at.
            course: Of main from noise to latents, if it is to be taken.
            progress: Told what is being done.
        """
        self._sources, self._progress = sources, progress
        self.variants = variants(form, sizes, sources.adapters)
        self._components = [
            {one.name: one for one in sources.components(variant.form)} for variant in self.variants
        ]
        prompt = None if course is None else course.prompt
        self._samples = [_samples(sources, timesteps, prompt) for _ in self.variants]
        self._tried: dict[tuple[str, str], Tried] = {}
        self._course = course
        self._trajectory: Trajectory | None = None
        self.golden: dict[str, np.ndarray] = {}
        """What a device can try itself with, "Unet.inputs.sample" and so on: see golden.py."""
        self.trajectory: Report = {}
        """How far the packages go astray: see Trajectory.of_packages."""
        self.strip: np.ndarray | None = None
        """Pictures at its end: see strip.py."""

    @property
    def samples(self) -> Samples:
        """Main's."""
        return self._samples[0]

    def groups(self) -> Iterator[list[Component]]:
        """Yield main's components, those of one module together."""
        components = self._components[0].values()
        for _, group in groupby(components, lambda one: (module_of(one), one.precision)):
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
        self._go(made[0], module)

    def compare(self, main: Component, runner: Runner) -> dict[str, Report]:
        """Compare a package's functions, but those that are as main's; return the reports.

        Of one that fails "blocks" tell where it departs from its module: see blocks.py.
        """
        reports = {}
        for variant, component in self.functions(main.name):
            if (key := (main.name, variant.function)) not in self._tried:
                continue
            name = main.name if variant.function == MAIN else ":".join(key)
            given, wanted = self._tried.pop(key)
            report = compare(
                runner, component, given, wanted, self._progress, function=variant.function
            )
            if report["problems"]:
                self._progress(f"looking for where {name} departs", 0, 1)
                report |= self._departed(variant, component, runner, given[report["worst"]])
            reports[name] = report
        if self._trajectory is not None and main.name == "Unet":
            self.trajectory = self._trajectory.of_packages(runner, self._progress)
        return reports

    def _departed(
        self, variant: Variant, component: Component, runner: Runner, sample: dict[str, np.ndarray]
    ) -> Report:
        module = self._sources.load(component)
        own = variant.module(self._sources, component, module)
        named = variant.named(own)
        blocks = departures(runner, component, own, sample, named=named, function=variant.function)
        return {"blocks": blocks, "departs": first_departure(blocks)}

    def _go(self, component: Component, module: nn.Module) -> None:
        """Take the trajectory with the module, or decode its end."""
        if self._course is None:
            return
        checkpoint = self._sources.checkpoint
        vae = AutoencoderKLConfig.from_dict(checkpoint.configs["vae"])
        if component.name == "Unet":
            self._trajectory = Trajectory(
                self._course,
                component,
                self.samples.told(component),
                scheduler=checkpoint.scheduler_config,
                channels=vae.latent_channels,
                is_guided=self.variants[0].form.guidance is None,
            )
            self._trajectory.of_model(component, module, self._progress)
        if component.name == "VAEDecoder" and self._trajectory is not None:
            self.strip = pictures(self._trajectory.finals, decoder(component, module, vae))

    def _is_new(self, variant: Variant, component: Component) -> bool:
        main = self._components[0][component.name]
        return variant.function == MAIN or variant.changes(component, main)


def let_go() -> None:
    """Give back the memory of what is done with: a MIL program is one great cycle."""
    gc.collect()
    mx.clear_cache()
    give_back_freed_memory()


def _samples(sources: Sources, timesteps: int, prompt: str | None) -> Samples:
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
        prompt=prompt,
    )
