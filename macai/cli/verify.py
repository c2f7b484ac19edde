"""`macai verify`: does a package compute what its model computes?"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from macai.cli.export_sd import (
    ControlNetOption,
    FunctionOption,
    LoraOption,
    TrajectoryGuidanceOption,
    TrajectoryOption,
    TrajectoryPromptOption,
    course,
)
from macai.cli.opening import AdapterOption, RuntimeOption, refuse_given

_OF_TEXT = ("adapter", "functions_of", "text", "positions", "runtime")
_OF_PICTURES = (
    *("lora", "controlnet", "function", "strip"),
    *("trajectory", "trajectory_guidance", "trajectory_prompt"),
)


def verify(
    ctx: typer.Context,
    package: Annotated[Path, typer.Argument(help="The bundle that macai export wrote.")],
    against: Annotated[
        str, typer.Option("--against", help="The model: a name, a folder, a .gguf or a hub id.")
    ],
    adapter: AdapterOption = None,
    lora: LoraOption = None,
    controlnet: ControlNetOption = None,
    function: FunctionOption = None,
    functions_of: Annotated[
        str | None,
        typer.Option(help="The adapter of the bundle whose functions are compared, by name."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to compare on; else one that comes with macai.")
    ] = None,
    positions: Annotated[int, typer.Option(min=8, help="Tokens of it to compare.")] = 128,
    trajectory: TrajectoryOption = 0,
    trajectory_guidance: TrajectoryGuidanceOption = 7.5,
    trajectory_prompt: TrajectoryPromptOption = None,
    strip: Annotated[
        Path | None, typer.Option(help="The PNG of the pictures at the end of --trajectory.")
    ] = None,
    runtime: RuntimeOption = "reference",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Run an exported package, and compare it with its model in MLX.

    The exit code is 1 if they do not agree. Where weights were compressed only the perplexity
    counts.

    A bundle of Stable Diffusion is compared component by component; it wants the LoRAs that were
    fused, the ControlNets, and the LoRAs of its functions. Of one that does not agree the first
    block that departs is told; --json has all of them.

    Where the package has a slot, the adapter is loaded into it: a folder of macai train, or the
    file of macai export adapter.

    Example: macai verify MyModel --against smollm2-135m --adapter runs/mine
    """
    from macai.coreml.sd.manifest import is_sd_bundle

    if is_sd_bundle(package):
        refuse_given(ctx, _OF_TEXT, "a bundle of Stable Diffusion")
        _check_strip(strip, trajectory)
        way = course(trajectory, trajectory_guidance, trajectory_prompt)
        options = {"course": way, "strip": strip}
        _verify_sd(package, against, (lora, controlnet, function), options, as_json=as_json)
        return
    refuse_given(ctx, _OF_PICTURES, "a language model")
    from macai.catalog import locate_model
    from macai.cli.export import print_report, read_text
    from macai.cli.progress import reporting
    from macai.coreml.device import CoreMLRunner
    from macai.coreml.export_llm import reference
    from macai.coreml.hot_swap import chosen_adapter
    from macai.coreml.session import open_bundle
    from macai.coreml.verify import sample_text, verify_package

    own_text = sample_text() if text is None else read_text(text)
    manifest, opened = open_bundle(package)
    given = str(adapter) if adapter is not None and manifest.slot else None
    _, held = chosen_adapter(manifest, given)
    with reporting() as progress:
        loaded = reference(locate_model(against, progress=progress), adapter)
        report = verify_package(
            loaded,
            manifest,
            opened,
            loaded.tokenizer.encode(own_text)[:positions],
            adapter=functions_of,
            exact=manifest.is_exact,
            runner=CoreMLRunner(package, manifest, held=held) if runtime == "coreml" else None,
            held=held,
            progress=progress,
        )
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
    if not report["passed"]:
        raise typer.Exit(1)


def _check_strip(strip: Path | None, trajectory: int) -> None:
    """Refuse a strip that would not be written, or would replace a picture."""
    from macai.diffusion.images import require_png
    from macai.errors import OutputError, UsageError

    if strip is None:
        return
    if not trajectory:
        raise UsageError("--strip shows the end of a trajectory", hint="add --trajectory 20")
    require_png(strip)
    if strip.exists():
        raise OutputError(f"{strip} exists already", hint="choose another --strip")


def _verify_sd(
    package: Path,
    against: str,
    parts: tuple[list[str] | None, list[str] | None, list[str] | None],
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from macai.cli.export_sd import open_sources, print_report
    from macai.cli.progress import reporting
    from macai.coreml.sd.manifest import read_sd_manifest
    from macai.coreml.sd.proof import verify_sd

    manifest = read_sd_manifest(package)
    sources = open_sources(against, manifest.source.get("variant"), *parts)
    with reporting() as progress:
        report = verify_sd(manifest, package, sources, progress=progress, **options)
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
    if not report["passed"]:
        raise typer.Exit(1)
