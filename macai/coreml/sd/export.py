"""From a checkpoint to a bundle that agrees with it, one component at a time."""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai import __version__
from macai.coreml.api import export_functions
from macai.coreml.cast import cast_weights
from macai.coreml.licence import licence_files, licence_name
from macai.coreml.manifest import FILE
from macai.coreml.package import package_bytes, package_hash
from macai.coreml.sd.card import card
from macai.coreml.sd.components import (
    COMPUTE_UNITS,
    DTYPES,
    MINIMUM_OS,
    MINIMUM_OS_XL,
    TARGET,
    TEXT_ENCODERS,
    Component,
    Form,
    components,
    picture_size,
    text_names,
    time_ids,
)
from macai.coreml.sd.manifest import PackageInfo, SdManifest
from macai.coreml.sd.samples import Samples
from macai.coreml.sd.verify import compare, reference
from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.image_settings import UsedFile
from macai.diffusion.loading import Checkpoint
from macai.diffusion.lora.apply import fuse
from macai.diffusion.lora.formats import LoraFile
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig
from macai.errors import ExportError, UsageError
from macai.files import write_json
from macai.mil import open_package
from macai.models.heap import give_back_freed_memory

RESOURCES = "Resources"
_COMPUTE_UNIT = {"cpuAndGPU": "CPU_AND_GPU", "cpuAndNeuralEngine": "CPU_AND_NE"}

Progress = Callable[[str, int, int], None]
Report = dict[str, Any]
Tried = tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA that is fused: what is in its file, how strongly, and which file it is."""

    content: LoraFile
    scale: float
    file: UsedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class SdExport:
    """What is asked for.

    Attributes:
        checkpoint: The model, opened in float32.
        name: What the manifest calls it.
        variant: Which files of the checkpoint's folder it was opened with.
        loras: Fused in this order.
        form: What of the packages can be chosen.
        timesteps: How many the U-Net is compared at; 0 compares nothing.
    """

    checkpoint: Checkpoint
    name: str
    variant: str | None = None
    loras: Sequence[Lora] = ()
    form: Form = field(default_factory=Form)
    timesteps: int = 5


def export_sd(
    export: SdExport, folder: Path, progress: Progress = lambda what, done, total: None
) -> tuple[SdManifest, Report]:
    """Write a bundle into an empty folder; return its manifest and what verify.json holds.

    Without a comparison that is an empty dict, and there is no such file.

    Raises:
        ExportError: a package does not agree with its module, or the model has no such form.
        UsageError: a size the model has not.
    """
    wanted = components(export.checkpoint.configs, export.form)
    resources = folder / RESOURCES
    resources.mkdir()
    samples = _samples(export.checkpoint, export.form, export.timesteps)
    reports: dict[str, Report] = {}
    packages: dict[str, PackageInfo] = {}
    for _, group in groupby(wanted, _module_of):
        made = list(group)
        progress("building packages", len(packages), len(wanted))
        tried = _write_packages(export, made, resources, samples)
        _let_go()
        for component in made:
            path = resources / f"{component.name}.mlpackage"
            packages[component.name] = _info(component, path)
            if tried:
                pairs = tried.pop(component.name)
                reports[component.name] = compare(path, component, *pairs, progress)
    progress("building packages", len(wanted), len(wanted))
    manifest = _manifest(export, packages)
    _write_rest(export, manifest, folder)
    if not reports:
        return manifest, {}
    report = _report(reports)
    write_json(folder / "verify.json", report)
    if report["problems"]:
        raise ExportError(
            "the packages do not agree with the model: " + "; ".join(report["problems"]),
            hint="--precision fp32 tells whether float16 is the reason",
        )
    return manifest, report


def verify_sd(
    manifest: SdManifest,
    folder: Path,
    checkpoint: Checkpoint,
    loras: Sequence[Lora],
    *,
    timesteps: int = 5,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Compare all packages of a bundle with the modules of its model, opened in float32.

    Raises:
        UsageError: the model or the LoRAs are not those it was made of.
    """
    _check_same(manifest, checkpoint, loras)
    form = Form(
        width=manifest.width,
        height=manifest.height,
        batch=manifest.batch,
        attention=manifest.attention,
        precision=manifest.packages["Unet"].precision,
    )
    samples = _samples(checkpoint, form, timesteps)
    reports = {}
    wanted = components(checkpoint.configs, form)
    for _, group in groupby(wanted, _module_of):
        made = list(group)
        tried = _tried(_load(checkpoint, loras, made[0].part), made, samples)
        _let_go()
        for component in made:
            package = folder / manifest.packages[component.name].package
            pairs = tried.pop(component.name)
            reports[component.name] = compare(package, component, *pairs, progress)
    return _report(reports)


def _let_go() -> None:
    """Give back the memory of what is done with: a MIL program is one great cycle."""
    gc.collect()
    mx.clear_cache()
    give_back_freed_memory()


def _module_of(component: Component) -> tuple[str, str]:
    """What components that are made of one module, with the same weights, have in common."""
    return component.part, component.precision


def _load(checkpoint: Checkpoint, loras: Sequence[Lora], part: str) -> nn.Module:
    module = checkpoint.load(part, dtype="float32")
    if loras and part != "vae":
        fuse({part: module}, [(lora.content, lora.scale) for lora in loras])
    return module


def _tried(module: nn.Module, made: Sequence[Component], samples: Samples) -> dict[str, Tried]:
    """Return what each component is tried with, and what the module makes of it."""
    tried = {}
    for component in made:
        given = samples.of(component)
        results = reference(component, module, given)
        samples.heard(component, results)
        tried[component.name] = (given, results)
    return tried


def _write_packages(
    export: SdExport, made: Sequence[Component], folder: Path, samples: Samples
) -> dict[str, Tried]:
    """Write the packages of one module, which is let go: comparing needs the memory."""
    module = _load(export.checkpoint, export.loras, made[0].part)
    tried = _tried(module, made, samples) if export.timesteps else {}
    cast_weights(module, DTYPES[made[0].precision])
    mx.clear_cache()
    for component in made:
        _write_package(export, component, module, folder / f"{component.name}.mlpackage")
    return tried


def _write_package(export: SdExport, component: Component, module: nn.Module, path: Path) -> None:
    source = _source(export)
    config = UNet2DConditionConfig.from_dict(export.checkpoint.configs["unet"])
    metadata = component.metadata(
        author=f"see the model card of {export.name}",
        license=source.get("license", ""),
        version=export.name,
        # Keys that the app Guernika reads.
        user={
            "identifier": export.name,
            "converter_version": f"macai {__version__}",
            "attention_implementation": export.form.attention.upper(),
            "compute_unit": _COMPUTE_UNIT[COMPUTE_UNITS[export.form.attention]],
            "hidden_size": str(config.per_block(config.cross_attention_dim)[0]),
            "prediction_type": _prediction_type(export.checkpoint),
        },
    )
    functions = {"main": component.function(module)}
    export_functions(functions, path, target=TARGET, metadata=metadata)


def _info(component: Component, path: Path) -> PackageInfo:
    function = open_package(path).functions["main"]
    return PackageInfo(
        package=f"{RESOURCES}/{path.name}",
        sha256=package_hash(path),
        bytes=package_bytes(path),
        precision=component.precision,
        inputs=_specs(function.inputs),
        outputs=_specs(function.outputs),
    )


def _specs(features: Any) -> dict[str, dict[str, Any]]:
    return {n: {"dtype": f.dtype, "shape": list(f.shape)} for n, f in features.items()}


def _manifest(export: SdExport, packages: dict[str, PackageInfo]) -> SdManifest:
    checkpoint = export.checkpoint
    vae = AutoencoderKLConfig.from_dict(checkpoint.configs["vae"])
    width, height = picture_size(checkpoint.configs, export.form)
    return SdManifest(
        name=export.name,
        family=checkpoint.kind,
        packages=packages,
        width=width,
        height=height,
        batch=export.form.batch,
        attention=export.form.attention,
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor or 0.0,
        prediction_type=_prediction_type(checkpoint),
        scheduler=checkpoint.scheduler_config,
        source=_source(export),
        macai=__version__,
        compute_units=COMPUTE_UNITS[export.form.attention],
        minimum_os=dict(MINIMUM_OS if time_ids(checkpoint.configs) is None else MINIMUM_OS_XL),
    )


def _source(export: SdExport) -> dict[str, Any]:
    checkpoint = export.checkpoint
    source: dict[str, Any] = {"model": export.name, "fingerprint": fingerprint(checkpoint)}
    if checkpoint.path.is_dir() and (licence := licence_name(checkpoint.path)):
        source["license"] = licence
    if export.variant is not None:
        source["variant"] = export.variant
    source["loras"] = [_described(lora) for lora in export.loras]
    return source


def _described(lora: Lora) -> dict[str, Any]:
    file = lora.file
    return {"name": file.name, "sha256": file.sha256, "scale": lora.scale}


def _write_rest(export: SdExport, manifest: SdManifest, folder: Path) -> None:
    checkpoint = export.checkpoint
    checkpoint.tokenizer(text_names(checkpoint.configs)[0]).write(folder / RESOURCES)
    if checkpoint.path.is_dir():
        for file in licence_files(checkpoint.path):
            shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    write_json(folder / FILE, manifest.to_json())


def _prediction_type(checkpoint: Checkpoint) -> str:
    return str(checkpoint.scheduler_config.get("prediction_type", "epsilon"))


def _samples(checkpoint: Checkpoint, form: Form, timesteps: int) -> Samples:
    vae = AutoencoderKLConfig.from_dict(checkpoint.configs["vae"])
    return Samples(
        {
            TEXT_ENCODERS[part]: checkpoint.tokenizer(part)
            for part in text_names(checkpoint.configs)
        },
        size=picture_size(checkpoint.configs, form),
        scaling_factor=vae.scaling_factor,
        train_timesteps=int(checkpoint.scheduler_config.get("num_train_timesteps", 1000)),
        timesteps=timesteps,
    )


def _report(reports: dict[str, Report]) -> Report:
    problems = [f"{name}: {p}" for name, report in reports.items() for p in report["problems"]]
    return {"packages": reports, "problems": problems, "passed": not problems}


def _check_same(manifest: SdManifest, checkpoint: Checkpoint, loras: Sequence[Lora]) -> None:
    if manifest.source["fingerprint"] != fingerprint(checkpoint):
        raise UsageError(
            f"{checkpoint.path} has other weights than the model this bundle was made of, "
            f"{manifest.source['model']}"
        )
    wanted = manifest.source["loras"]
    if wanted != [_described(lora) for lora in loras]:
        names = " ".join(f"--lora {one['name']}:{one['scale']:g}" for one in wanted)
        raise UsageError(
            "these are not the LoRAs that are in this bundle",
            hint=f"it was made with {names}" if names else "it was made with none",
        )
