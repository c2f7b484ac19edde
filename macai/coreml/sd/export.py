"""From a checkpoint to a bundle that agrees with it, one component at a time."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai import __version__
from macai.coreml.api import export_functions
from macai.coreml.cast import cast_weights
from macai.coreml.licence import licence_files, licence_name
from macai.coreml.manifest import FILE
from macai.coreml.package import package_bytes, package_hash
from macai.coreml.sd import variants
from macai.coreml.sd.card import card, controlnets
from macai.coreml.sd.chunks import export_halves
from macai.coreml.sd.compiled import metadata_json
from macai.coreml.sd.component import Component
from macai.coreml.sd.components import MINIMUM_OS, MINIMUM_OS_XL, TARGET
from macai.coreml.sd.form import (
    COMPUTE_UNITS,
    DTYPES,
    Form,
    picture_size,
    text_names,
    time_ids,
)
from macai.coreml.sd.golden import write_golden
from macai.coreml.sd.manifest import PackageInfo, SdManifest
from macai.coreml.sd.preflight import preflight
from macai.coreml.sd.proof import summary, with_palettes
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.sources import Sources
from macai.coreml.sd.trajectory import Course
from macai.coreml.sd.trial import Trial, let_go
from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.images import write_picture
from macai.diffusion.loading import Checkpoint
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig
from macai.errors import ExportError
from macai.files import write_json
from macai.mil import open_package
from macai.models.arrays import named_arrays

RESOURCES, METADATA = "Resources", "metadata"
STRIP = "strip.png"
_TEMPLATES = Path(__file__).parent / "templates"
_COMPUTE_UNIT = {"cpuAndGPU": "CPU_AND_GPU", "cpuAndNeuralEngine": "CPU_AND_NE"}

Progress = Callable[[str, int, int], None]
Report = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SdExport:
    """What is asked for.

    Attributes:
        sources: What it is made of.
        name: What the manifest calls it.
        variant: Which files of the checkpoint's folder it was opened with.
        form: What of the packages can be chosen.
        bits: Of weights of U-Net and ControlNets in tables of few values, 2, 4, 6, 8 or a mean in
            between; None rounds them to float16 alone.
        text_bits: Likewise of the text encoders'.
        most_bytes: A U-Net whose weights take more is cut into two packages.
        sizes: Width and height of other pictures: a function of each package.
        timesteps: How many the U-Net is compared at; 0 compares nothing.
        course: From noise to latents, taken by model and packages; its end is in STRIP. None takes
            none.
    """

    sources: Sources
    name: str
    variant: str | None = None
    form: Form = field(default_factory=Form)
    bits: float | None = None
    text_bits: float | None = None
    most_bytes: int | None = None
    sizes: Sequence[tuple[int, int]] = ()
    timesteps: int = 5
    course: Course | None = None


def export_sd(
    export: SdExport, folder: Path, progress: Progress = lambda what, done, total: None
) -> tuple[SdManifest, Report]:
    """Write a bundle into an empty folder; return its manifest and what verify.json holds.

    Without a comparison that is an empty dict, and there is no such file.

    Raises:
        ExportError: a package does not agree with its module, or the model has no such form.
        UsageError: a size the model has not.
    """
    for variant in variants.variants(export.form, export.sizes, {}):
        configs = export.sources.checkpoint.configs
        preflight(configs, variant.form, text_bits=export.text_bits)
    if export.bits is not None or export.text_bits is not None:
        bits = {"bits": export.bits, "text_bits": export.text_bits}
        sources = with_palettes(export.sources, export.form, **bits, progress=progress)
        export = replace(export, sources=sources)
    trial = Trial(
        export.sources,
        export.form,
        export.sizes,
        export.timesteps,
        course=export.course if export.timesteps else None,
        progress=progress,
    )
    resources = folder / RESOURCES
    resources.mkdir()
    reports: dict[str, Report] = {}
    packages: dict[str, PackageInfo] = {}
    groups = list(trial.groups())
    for number, made in enumerate(groups):
        progress("building packages", number, len(groups))
        written = _write_packages(export, made, resources, trial)
        let_go()
        for component, paths in zip(made, written, strict=True):
            for path in paths:
                name = path.relative_to(resources).with_suffix("").as_posix()
                packages[name] = _info(component, path, folder)
            reports |= trial.compare(component, Runner(paths))
    progress("building packages", len(groups), len(groups))
    manifest = _manifest(export, packages)
    _write_rest(export, manifest, folder)
    if trial.golden:
        write_golden(trial.golden, folder)
    if not reports:
        return manifest, {}
    if trial.strip is not None:
        write_picture(folder / STRIP, trial.strip)
    report = summary(reports, trial.trajectory)
    write_json(folder / "verify.json", report)
    if report["problems"]:
        raise ExportError(
            "the packages do not agree with the model: " + "; ".join(report["problems"]),
            hint="--precision fp32 tells whether float16 is the reason",
        )
    return manifest, report


def _write_packages(
    export: SdExport, made: Sequence[Component], folder: Path, trial: Trial
) -> list[list[Path]]:
    """Write the packages of one module, which is let go: comparing needs the memory.

    Returns:
        Of each component its package, or the two it was cut into.
    """
    module = export.sources.load(made[0])
    if export.timesteps:
        trial.try_module(made, module)
    cast_weights(module, DTYPES[made[0].precision])
    mx.clear_cache()
    size = sum(array.nbytes for array in named_arrays(module.parameters()).values())
    is_large = export.most_bytes is not None and size > export.most_bytes
    written = []
    for component in made:
        halves = ("Chunk1", "Chunk2") if is_large and component.part == "unet" else ("",)
        paths = [folder / f"{component.name}{half}.mlpackage" for half in halves]
        _write_package(export, component, module, paths, trial)
        written.append(paths)
    return written


def _write_package(
    export: SdExport, component: Component, module: nn.Module, paths: Sequence[Path], trial: Trial
) -> None:
    source = _source(export)
    config = UNet2DConditionConfig.from_dict(export.sources.checkpoint.configs["unet"])
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
            "prediction_type": _prediction_type(export.sources.checkpoint),
        },
    )
    functions = {
        variant.function: variant.export(export.sources, own, module)
        for variant, own in trial.functions(component.name)
    }
    target = TARGET if len(functions) == 1 else variants.TARGET
    paths[0].parent.mkdir(exist_ok=True)
    if len(paths) > 1:
        export_halves(functions, paths, target_name=target, metadata=metadata)
    else:
        export_functions(functions, paths[0], target=target, metadata=metadata)


def _info(component: Component, path: Path, folder: Path) -> PackageInfo:
    function = open_package(path).functions["main"]
    return PackageInfo(
        package=path.relative_to(folder).as_posix(),
        sha256=package_hash(path),
        bytes=package_bytes(path),
        precision=component.precision,
        inputs=_specs(function.inputs),
        outputs=_specs(function.outputs),
    )


def _specs(features: Any) -> dict[str, dict[str, Any]]:
    return {n: {"dtype": f.dtype, "shape": list(f.shape)} for n, f in features.items()}


def _manifest(export: SdExport, packages: dict[str, PackageInfo]) -> SdManifest:
    checkpoint = export.sources.checkpoint
    vae = AutoencoderKLConfig.from_dict(checkpoint.configs["vae"])
    width, height = picture_size(checkpoint.configs, export.form)
    functions = _functions(export)
    oldest = MINIMUM_OS if time_ids(checkpoint.configs) is None else MINIMUM_OS_XL
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
        guidance=export.form.guidance,
        compute_units=COMPUTE_UNITS[export.form.attention],
        minimum_os=dict(variants.MINIMUM_OS if functions else oldest),
        functions=functions,
        palettes={name: dict(bits) for name, bits in export.sources.palettes.items()},
    )


def _functions(export: SdExport) -> dict[str, dict[str, Any]]:
    made = {}
    for one in variants.variants(export.form, export.sizes, export.sources.adapters)[1:]:
        width, height = picture_size(export.sources.checkpoint.configs, one.form)
        lora = None if one.lora is None else one.lora.described()
        made[one.function] = {"width": width, "height": height, "lora": lora}
    return made


def _source(export: SdExport) -> dict[str, Any]:
    checkpoint = export.sources.checkpoint
    source: dict[str, Any] = {"model": export.name, "fingerprint": fingerprint(checkpoint)}
    if checkpoint.path.is_dir() and (licence := licence_name(checkpoint.path)):
        source["license"] = licence
    if export.variant is not None:
        source["variant"] = export.variant
    source["loras"] = [lora.described() for lora in export.sources.loras]
    if nets := export.sources.controlnets:
        source["controlnets"] = [net.described() for net in nets]
    return source


def _write_rest(export: SdExport, manifest: SdManifest, folder: Path) -> None:
    checkpoint = export.sources.checkpoint
    checkpoint.tokenizer(text_names(checkpoint.configs)[0]).write(folder / RESOURCES)
    if checkpoint.path.is_dir():
        for file in licence_files(checkpoint.path):
            shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    _write_swift(manifest, folder)
    for name, info in manifest.packages.items():
        file = folder / METADATA / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, metadata_json(folder / info.package))
    write_json(folder / FILE, manifest.to_json())


def _write_swift(manifest: SdManifest, folder: Path) -> None:
    own = {
        "@UNITS@": manifest.compute_units,
        "@CONTROLNETS@": controlnets(manifest),
        "@SCALE@": f"{manifest.scaling_factor:g}",
    }
    (folder / "swift").mkdir()
    for template in _TEMPLATES.glob("*.swift"):
        text = template.read_text(encoding="utf-8")
        for place, value in own.items():
            text = text.replace(place, value)
        (folder / "swift" / template.name).write_text(text, encoding="utf-8")


def _prediction_type(checkpoint: Checkpoint) -> str:
    return str(checkpoint.scheduler_config.get("prediction_type", "epsilon"))
