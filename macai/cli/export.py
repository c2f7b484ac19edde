"""`macai export`: a tuned model becomes what an app carries."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.export_adapter import EXAMPLE, adapter
from macai.cli.opening import ModelOption

if TYPE_CHECKING:
    from macai.coreml.manifest import Manifest
    from macai.coreml.slot import SlotOptions

app = typer.Typer(
    name="export",
    help="Make a Core ML package of a model, proven against it.",
    epilog="Example: macai export llm --model smollm2-135m --adapter runs/mine --out MyModel",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    epilog="Example: macai export llm --model smollm2-135m --adapter runs/mine --out MyModel"
)
def llm(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="The folder for the bundle.")],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of an adapter that macai train wrote: one is fused; several get functions "
            "of their own and share the model's weights."
        ),
    ] = None,
    adapter_slot: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Leave room for an adapter of at most this rank, which an app loads at run time: "
            "see macai export adapter.",
        ),
    ] = None,
    slot_target: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer the slot is for, as in a recipe; may be repeated. Default: all-linear."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What package and Swift code are called; else the model.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="The most tokens a conversation has; a multiple of 32. Default: 1024, or what the "
            "model knows if that is less."
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="gpu: functions of fixed shapes, with code for an app; swift-transformers: what "
            "that library loads; ane: for the Neural Engine, experimental, not tried on one."
        ),
    ] = "gpu",
    chunks: Annotated[
        int | None,
        typer.Option(min=1, help="In how many packages; as few as the profile needs if not given."),
    ] = None,
    prefill: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of a prompt taken at once; may be repeated. Default: 64."),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp16 or fp32: how numbers are kept.")] = "fp16",
    weights: Annotated[
        str | None,
        typer.Option(
            help="full; keep: quantised ones as they are, adapters as functions of their own; or "
            "int8, uint4-32, scaled4, palette4-16 and the like. Default: full; of ane palette6-16."
        ),
    ] = None,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(min=1, max=16, help="Mix schemes to this mean, by what each needs."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Text like what the model is for: bits are saved by it, and how large values "
            "become is measured on it."
        ),
    ] = None,
    largest_increase: Annotated[
        float, typer.Option(min=0, help="The most the perplexity may rise by saving bits.")
    ] = 0.25,
    positions: Annotated[
        int, typer.Option(min=8, help="Tokens of text to compare with the model.")
    ] = 48,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the package with the model.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace --out, with all that is in it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Export a language model: a package with state, its contract, tokenizer and code for an app.

    The package is run here, by macai's own runtime, and compared with the model; one that does not
    agree is not kept. Core ML itself is not needed and not asked.
    """
    from macai.cli.lean import lean_imports
    from macai.files import atomic_directory, refuse_replacing

    refuse_replacing(out, force=force)
    with lean_imports():
        import mlx_lm.utils  # noqa: F401 - what loads the model, below

        from macai.catalog import MODELS, locate_model, repository_of
        from macai.cli.progress import reporting
        from macai.coreml.bundle import bundle_name
        from macai.coreml.export_llm import Export, export_llm
        from macai.coreml.profiles import profile_called
    chosen = profile_called(profile)
    stored = weights or ("full" if bits_per_weight is not None else chosen.weights)
    adapters = _named(adapter or [])
    text = None if calibrate is None else read_text(calibrate)
    with atomic_directory(out, force=force) as folder, reporting() as progress:
        source = {"model": model}
        if model in MODELS:
            source["license"] = MODELS[model].licence
        if repository := repository_of(model):
            source["repository"] = repository
        if len(adapters) == 1 and stored != "keep":  # else it is not in the plain functions
            source["adapter"] = next(iter(adapters))
        export = Export(
            path=locate_model(model, progress=progress),
            name=bundle_name(name or Path(model.removesuffix(".gguf")).name),
            source=source,
            adapters=adapters,
            slot=_slot(adapter_slot, slot_target),
            context=context,
            prefill=prefill or (),
            precision=precision,
            profile=chosen,
            chunks=chunks,
            weights=stored,
            bits_per_weight=bits_per_weight,
            calibration=text,
            largest_increase=largest_increase,
            positions=positions if verify else 0,
        )
        manifest, reports = export_llm(export, folder, progress)
    if as_json:
        print(json.dumps({"out": str(out), **manifest.to_json(), "verify": reports}))
    else:
        _print(manifest, out, reports)


app.command(epilog=f"Example: {EXAMPLE}")(adapter)


def read_text(file: Path) -> str:
    """Return a UTF-8 file's text; DataError if it is none."""
    from macai.errors import DataError

    try:
        return file.read_text(encoding="utf-8")
    except OSError as e:
        raise DataError(f"{file}: cannot be read: {e.strerror}", hint="give a text file") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{file}: not UTF-8 at byte {e.start}", hint="give a text file") from e


def _named(adapters: list[Path]) -> dict[str, Path]:
    """Return the adapters by name: their folder's."""
    from macai.errors import UsageError

    named = {re.sub(r"\W", "_", path.resolve().name): path for path in adapters}
    if len(named) < len(adapters):
        raise UsageError("two adapters have one name", hint="rename one of the folders")
    return named


def _slot(rank: int | None, targets: list[str] | None) -> "SlotOptions | None":
    """Return the room for an adapter that is asked for."""
    from macai.coreml.slot import SlotOptions
    from macai.errors import UsageError

    if rank is None:
        if targets:
            raise UsageError("--slot-target is of a slot", hint="add --adapter-slot RANK")
        return None
    return SlotOptions(rank=rank, targets=targets or ("all-linear",))


def _print(manifest: "Manifest", out: Path, reports: dict[str, dict[str, Any]]) -> None:
    print(f"bundle: {out}")
    sizes = {c.package: c.bytes for c in manifest.chunks} or {manifest.package: manifest.bytes}
    for package, size in sizes.items():
        print(f"package: {out / package}, {size / 1e6:.0f} MB, {manifest.weights}")
    if slot := manifest.slot:
        print(f"slot: an adapter of rank {slot.rank} at most, for {len(slot.layers)} layers")
    if price := reports.get("compression"):
        perplexity = price["perplexity"]
        print(
            f"{price['bits_per_weight']:.2f} bits per weight: perplexity {perplexity['model']:.2f} "
            f"to {perplexity['compressed']:.2f} ({perplexity['delta']:+.1%})"
        )
        for path, reason in price["left_as_they_are"].items():
            print(f"left as it is: {path}: {reason}")
    _print_range(manifest)
    compared = {n: r for n, r in reports.items() if "functions" in r}
    if not compared:
        print("not verified", file=sys.stderr)
    for name, report in compared.items():
        if len(compared) > 1:
            print(f"\n{name}")
        print_report(report)
    for text in manifest.unverified:
        print(f"not verified: {text}")
    print(f"next: macai run {out} --prompt ...; macai doctor {out}", file=sys.stderr)


def _print_range(manifest: "Manifest") -> None:
    """Print how large values become, if that was measured."""
    if not (found := manifest.float16):
        return
    print(f"largest value: {found['largest']:,.0f}, after {found['after']}; float16 ends at 65,504")
    for function, count in found["float32_values"].items():
        print(f"{function}: {count} values are float32 for that")


def print_report(report: dict[str, Any]) -> None:
    """Print what was compared, as a table."""
    for name, f in report["functions"].items():
        print(
            f"{name:10} {f['positions']:4} positions  top-1 {f['top1']:6.1%}  "
            f"KL {f['kl']:.1e}  cosine {f['cosine']:.7f}"
        )
    transcript, perplexity = report["transcript"], report["perplexity"]
    print(
        f"transcript {transcript['tokens']:4} tokens     {transcript['different']} different, "
        f"{transcript['near_ties']} near ties"
    )
    print(
        f"perplexity {perplexity['model']:.3f} of the model, {perplexity['package']:.3f} of the "
        f"package ({perplexity['delta']:+.2%})"
    )
    print(f"float16    {report['float16']['overflows']} overflows")
    print("verified" if report["passed"] else "FAILED: " + "; ".join(report["problems"]))
