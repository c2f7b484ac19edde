"""Do a bundle's packages compute what its model does? Each part is loaded once, and let go."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from macai.coreml.sd.form import TEXT_ENCODERS, Form
from macai.coreml.sd.manifest import SdManifest
from macai.coreml.sd.palettes import choose
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.sources import Sources, module_of
from macai.coreml.sd.trajectory import Course
from macai.coreml.sd.trial import Trial, let_go
from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.images import write_picture
from macai.errors import UsageError

Progress = Callable[[str, int, int], None]
Report = dict[str, Any]


def verify_sd(
    manifest: SdManifest,
    folder: Path,
    sources: Sources,
    *,
    timesteps: int = 5,
    course: Course | None = None,
    strip: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Compare all packages of a bundle with the modules of its model, opened in float32.

    Args:
        manifest: The bundle's.
        folder: The bundle.
        sources: What it was made of.
        timesteps: How many of 20 steps' times the U-Net is compared at.
        course: Of a trajectory that the U-Net makes from noise to latents; None makes none.
        strip: Where to write, as PNG, the pictures at its end: the model's, the packages' in
            float32 and in float16, and eight times what differs.
        progress: Told what is being done.

    Raises:
        UsageError: the model, the LoRAs or the ControlNets are not those it was made of.
    """
    _check_same(manifest, sources)
    sources = replace(sources, palettes=manifest.palettes)
    trial = Trial(
        sources, manifest.form(), manifest.sizes(), timesteps, course=course, progress=progress
    )
    reports: dict[str, Report] = {}
    for made in trial.groups():
        module = sources.load(made[0])
        trial.try_module(made, module)
        del module
        let_go()
        for component in made:
            parts = manifest.parts(component.name)
            runner = Runner([folder / part.package for part in parts])
            reports |= trial.compare(component, runner)
    if strip is not None and trial.strip is not None:
        write_picture(strip, trial.strip)
    return summary(reports, trial.trajectory)


def with_palettes(
    sources: Sources,
    form: Form,
    *,
    bits: float | None = None,
    text_bits: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Sources:
    """Return sources whose weights have palettes, of bits that are spent where they matter most.

    Args:
        sources: Without any.
        form: Of the packages.
        bits: Per weight, of the U-Net and of each ControlNet; None leaves them as they are.
        text_bits: Likewise of each text encoder.
        progress: Told how far it is.

    Raises:
        UsageError: fewer than 2 or more than 8 bits.
    """
    trial = Trial(sources, form, (), 2)
    palettes = {}
    for made in trial.groups():
        component = made[0]
        is_text = component.part in TEXT_ENCODERS
        wanted = text_bits if is_text else bits
        if component.part == "vae" or (wanted is None and not is_text):
            continue
        module = sources.load(component)
        if wanted is not None:
            samples = trial.samples.of(component)
            palettes[module_of(component)] = choose(
                module, component, samples, wanted, progress=progress
            )
        if is_text:
            trial.try_module(made, module)
        let_go()
    return replace(sources, palettes=palettes)


def summary(reports: dict[str, Report], trajectory: Report | None = None) -> Report:
    """Return the comparisons of all packages as one, and with them the trajectory's."""
    problems = [f"{name}: {p}" for name, report in reports.items() for p in _problems(report)]
    made = {"trajectory": trajectory} if trajectory else {}
    problems += (trajectory or {}).get("problems", [])
    return {"packages": reports, **made, "problems": problems, "passed": not problems}


def _problems(report: Report) -> list[str]:
    """Return what is wrong with a package, and which block is the first to depart."""
    problems: list[str] = report["problems"]
    if first := report.get("departs"):
        psnr = min(first["fp32"], first["fp16"])
        return [*problems, f"{first['block']} is the first block to depart, with {psnr:.1f} dB"]
    return problems


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
