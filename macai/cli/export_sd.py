"""`macai export sd`: Stable Diffusion becomes what Apple's package makes pictures of."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.errors import UsageError

if TYPE_CHECKING:
    from macai.coreml.sd.manifest import SdManifest
    from macai.coreml.sd.sources import Lora, Sources
    from macai.coreml.sd.trajectory import Course
    from macai.diffusion.loading import Checkpoint

# Apple's exporter advises to cut larger ones for iOS: README of apple/ml-stable-diffusion.
_NEURAL_ENGINE_MB = 1000.0

LoraOption = Annotated[
    list[str] | None,
    typer.Option("--lora", help="A LoRA of any program, fused: FILE, or FILE:SCALE."),
]

ControlNetOption = Annotated[
    list[str] | None,
    typer.Option("--controlnet", help="A ControlNet beside it: PATH, or NAME=PATH."),
]
FunctionOption = Annotated[
    list[str] | None,
    typer.Option("--function", help="A LoRA as a function: NAME=FILE or NAME=FILE:SCALE."),
]
TrajectoryOption = Annotated[
    int,
    typer.Option(
        "--trajectory",
        min=0,
        help="Of Stable Diffusion: also so many steps from noise, by model and packages.",
    ),
]
TrajectoryGuidanceOption = Annotated[
    float, typer.Option(help="Of --trajectory: what the model is drawn with.")
]
TrajectoryPromptOption = Annotated[
    str | None, typer.Option(help="Of --trajectory: a prompt the model knows.")
]


def sd(
    model: Annotated[
        str,
        typer.Option(help="A folder in diffusers' layout, a .safetensors or .ckpt file, a hub id."),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the bundle.")],
    lora: LoraOption = None,
    controlnet: ControlNetOption = None,
    function: FunctionOption = None,
    name: Annotated[
        str | None, typer.Option(help="What the bundle calls the model; else its own name.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="WIDTHxHEIGHT in pixels, else the model's own; more are functions."),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(help="Rows of the U-Net: 2, prompt and negative prompt at once, or 1."),
    ] = 2,
    attention: Annotated[
        str,
        typer.Option(
            help="original, for a GPU; split_einsum or split_einsum_v2, for the Neural Engine."
        ),
    ] = "original",
    guidance: Annotated[
        float | None, typer.Option(help="Of an LCM whose U-Net takes it: it is in the package.")
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            min=2,
            max=8,
            help="Of U-Net's and ControlNets' weights: 2, 4, 6, 8, or a mean in between.",
        ),
    ] = None,
    text_bits: Annotated[
        float | None, typer.Option(min=2, max=8, help="Likewise of the text encoders' weights.")
    ] = None,
    chunk: Annotated[
        float | None,
        typer.Option(
            help="Cut a U-Net of more MB in two; for the Neural Engine 1000 if not given, 0 never."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp16 or fp32: how numbers are kept.")] = "fp16",
    variant: Annotated[str | None, typer.Option(help="Which files of a folder: fp16.")] = None,
    timesteps: Annotated[
        int, typer.Option(min=1, max=20, help="How many of 20 steps the U-Net is compared at.")
    ] = 5,
    trajectory: TrajectoryOption = 0,
    trajectory_guidance: TrajectoryGuidanceOption = 7.5,
    trajectory_prompt: TrajectoryPromptOption = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the packages with the model.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace --out, with all that is in it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Export Stable Diffusion 1, 2 or XL: packages with names, inputs and outputs of Apple's own.

    Text encoder, U-Net, decoder and encoder are run here, by macai's own runtime, and compared with
    the model; what does not agree is not kept. Core ML itself is not needed and not asked. Pictures
    at the end of a --trajectory are in strip.png.

    Example: macai export sd --model ./stable-diffusion-v1-5 --lora ink.safetensors:0.8 --out MySD
    """
    from macai.cli.lean import lean_imports
    from macai.files import atomic_directory, refuse_replacing

    refuse_replacing(out, force=force)
    with lean_imports():
        from macai.cli.image_wanted import parse_size
        from macai.cli.progress import reporting
        from macai.coreml.sd.export import SdExport, export_sd
        from macai.coreml.sd.form import Form
    sizes = [parse_size(one) for one in size or []]
    width, height = sizes[0] if sizes else (None, None)
    form = Form(
        width=width,
        height=height,
        batch=batch,
        precision=precision,
        attention=attention,
        guidance=guidance,
    )
    if chunk is None and attention != "original":
        chunk = _NEURAL_ENGINE_MB
    export = SdExport(
        sources=open_sources(model, variant, lora, controlnet, function),
        name=name or Path(model).name,
        variant=variant,
        form=form,
        bits=bits,
        text_bits=text_bits,
        most_bytes=int(chunk * 1e6) if chunk else None,
        sizes=[(w, h) for w, h in sizes[1:] if w and h],
        timesteps=timesteps if verify else 0,
        course=course(trajectory, trajectory_guidance, trajectory_prompt),
    )
    with atomic_directory(out, force=force) as folder, reporting() as progress:
        manifest, report = export_sd(export, folder, progress)
    if as_json:
        print(json.dumps({"out": str(out), **manifest.to_json(), "verify": report}))
    else:
        _print(manifest, out, report)


def course(steps: int, guidance: float, prompt: str | None) -> "Course | None":
    """Return the trajectory that is asked for; none of no steps."""
    from macai.coreml.sd.trajectory import Course

    return Course(steps=steps, guidance=guidance, prompt=prompt) if steps else None


def open_sources(
    model: str,
    variant: str | None,
    loras: list[str] | None,
    controlnets: list[str] | None,
    functions: list[str] | None,
) -> "Sources":
    """Open a model in float32, by a folder, a file or a hub id, with LoRAs and ControlNets."""
    from macai.catalog import locate_pipeline
    from macai.coreml.sd.sources import ControlNet, Sources, swift_name
    from macai.diffusion.loading import open_checkpoint

    path = locate_pipeline(model, variant=variant)
    checkpoint = open_checkpoint(path, dtype="float32", variant=variant)
    nets = []
    for spec in controlnets or []:
        name, _, place = spec.rpartition("=")
        opened = open_checkpoint(locate_pipeline(place), dtype="float32")
        nets.append(ControlNet(name=swift_name(name or Path(place).stem), checkpoint=opened))
    named = [spec.partition("=") for spec in functions or []]
    if unnamed := [name for name, found, _ in named if not found]:
        raise UsageError(f"--function {unnamed[0]} has no name", hint="NAME=FILE or NAME=FILE:1")
    adapters = _loras([file for _, _, file in named], checkpoint)
    return Sources(
        checkpoint=checkpoint,
        loras=_loras(loras or [], checkpoint),
        controlnets=nets,
        adapters=dict(zip([name for name, _, _ in named], adapters, strict=True)),
    )


def _loras(specs: list[str], checkpoint: "Checkpoint") -> list["Lora"]:
    from macai.cli.loras import read_loras
    from macai.coreml.sd.sources import Lora

    read, used = read_loras(specs, checkpoint)
    return [
        Lora(content=content, scale=scale, file=file)
        for (content, scale), file in zip(read, used, strict=True)
    ]


def print_report(report: dict[str, Any]) -> None:
    """Print how close each package comes to its module, as a table."""
    for package, one in report["packages"].items():
        for output, by_kind in one["outputs"].items():
            numbers = "  ".join(
                f"{kind} {found['psnr']:6.1f} dB cosine {found['cosine']:.7f}"
                for kind, found in by_kind.items()
            )
            print(f"{package:12} {output:18} {one['samples']:2} samples  {numbers}")
    for kind in ("fp32", "fp16"):
        if found := report.get("trajectory", {}).get(kind):
            least = min(found["cosine"])
            print(
                f"trajectory   {kind}  least cosine {least:.7f}  at the end {found['psnr']:.1f} dB"
            )
    overflows = sum(one["overflows"] for one in report["packages"].values())
    print(f"float16 {overflows} overflows")
    print("verified" if report["passed"] else "FAILED: " + "; ".join(report["problems"]))


def _print(manifest: "SdManifest", out: Path, report: dict[str, Any]) -> None:
    print(f"bundle: {out}")
    for name, package in manifest.packages.items():
        print(f"{name:12} {package.bytes / 1e6:8.1f} MB  {package.precision}")
    if report:
        print_report(report)
    else:
        print("not verified", file=sys.stderr)
    print(f"next: macai doctor {out}; macai run {out} --prompt ...", file=sys.stderr)
