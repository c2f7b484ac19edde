"""`macai export`: a tuned model becomes what an app carries."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.opening import ModelOption

if TYPE_CHECKING:
    from macai.coreml.manifest import Manifest

app = typer.Typer(
    name="export",
    help="Make a Core ML package of a model, proven against it.",
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
    name: Annotated[
        str | None, typer.Option(help="What package and Swift code are called; else the model.")
    ] = None,
    context: Annotated[
        int, typer.Option(help="The most tokens a conversation has; a multiple of 32.")
    ] = 1024,
    prefill: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of a prompt taken at once; may be repeated. Default: 64."),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp16 or fp32: how numbers are kept.")] = "fp16",
    weights: Annotated[
        str,
        typer.Option(
            help="full, or keep: quantised ones as they are, adapters as functions of their own."
        ),
    ] = "full",
    positions: Annotated[
        int, typer.Option(min=8, help="Tokens of text to compare with the model.")
    ] = 48,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the package with the model.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Export a language model: a package with state, its contract, tokenizer and code for an app.

    The package is run here, by macai's own runtime, and compared with the model; one that does not
    agree is not kept. Core ML itself is not needed and not asked.
    """
    from macai.cli.progress import reporting
    from macai.errors import ExportError
    from macai.files import atomic_directory, refuse_existing, write_json

    refuse_existing(out, force=force)
    adapters = _named(adapter or [])
    with atomic_directory(out, force=force) as folder:
        with reporting() as progress:
            manifest = _write(
                model,
                adapters,
                folder,
                name=name,
                context=context,
                prefill=prefill or [64],
                precision=precision,
                weights=weights,
                progress=progress,
            )
        fused = _fuses(adapters, weights)
        reports = {}
        if verify:
            reports = _verify(folder, model, adapters, positions=positions, fused=fused)
        write_json(folder / "verify.json", reports)
        if problems := [f"{n}: {p}" for n, r in reports.items() for p in r["problems"]]:
            raise ExportError(
                "the package does not agree with the model: " + "; ".join(problems),
                hint="--precision fp32 tells whether float16 is the reason",
            )
    if as_json:
        print(json.dumps({"out": str(out), **manifest.to_json(), "verify": reports}))
    else:
        _print(manifest, out, reports)


def _named(adapters: list[Path]) -> dict[str, Path]:
    """Return the adapters by name: their folder's."""
    from macai.errors import UsageError

    named = {re.sub(r"\W", "_", path.resolve().name): path for path in adapters}
    if len(named) < len(adapters):
        raise UsageError("two adapters have one name", hint="rename one of the folders")
    return named


def _fuses(adapters: dict[str, Path], weights: str) -> bool:
    """Whether there is at most one adapter, and it is fused: kept weights take none."""
    return not adapters or (len(adapters) == 1 and weights != "keep")


def _verify(
    folder: Path, model: str, adapters: dict[str, Path], *, positions: int, fused: bool
) -> dict[str, dict[str, Any]]:
    """Compare all functions of a bundle; reports by adapter, "model" for the plain or fused one."""
    if fused:
        adapter = next(iter(adapters.values()), None)
        return {"model": verified(folder, model, adapter, positions=positions)}
    reports = {"model": verified(folder, model, None, positions=positions)}
    for name, path in adapters.items():
        reports[name] = verified(folder, model, path, positions=positions, functions_of=name)
    return reports


def _write(
    model: str, adapters: dict[str, Path], folder: Path, *, name: str | None, **options: Any
) -> "Manifest":
    from macai.catalog import locate_model
    from macai.coreml.bundle import bundle_name, write_bundle
    from macai.models.adapter import load_adapter
    from macai.models.load import load_model

    path = locate_model(model, progress=options["progress"])
    loaded = load_model(path, as_stored=True)
    source = {"model": model}
    if adapters and _fuses(adapters, options["weights"]):
        [(source["adapter"], adapter)] = adapters.items()
        load_adapter(loaded, adapter)
    else:
        options["adapters"] = adapters
    label = bundle_name(name or Path(model.removesuffix(".gguf")).name)
    return write_bundle(loaded, folder, name=label, source=source, **options)


def verified(
    folder: Path,
    model: str,
    adapter: Path | None,
    *,
    positions: int,
    text: str | None = None,
    functions_of: str | None = None,
    runtime: str = "reference",
) -> dict[str, Any]:
    """Open a bundle and its model, and compare them: see macai.coreml.verify.

    `functions_of` names the adapter whose functions are compared; else the plain or fused ones are.
    """
    from macai.cli.opening import open_model
    from macai.cli.progress import reporting
    from macai.coreml.device import CoreMLRunner
    from macai.coreml.session import open_bundle
    from macai.coreml.verify import sample_text, verify_package

    manifest, package = open_bundle(folder)
    loaded = open_model(model, adapter)
    ids = loaded.tokenizer.encode(text or sample_text())[:positions]
    with reporting() as progress:
        return verify_package(
            loaded,
            manifest,
            package,
            ids,
            adapter=functions_of,
            runner=CoreMLRunner(folder, manifest) if runtime == "coreml" else None,
            progress=progress,
        )


def _print(manifest: "Manifest", out: Path, reports: dict[str, dict[str, Any]]) -> None:
    print(f"bundle: {out}")
    print(f"package: {out / manifest.package}, {manifest.bytes / 1e6:.0f} MB, {manifest.weights}")
    if not reports:
        print("not verified", file=sys.stderr)
    for name, report in reports.items():
        if len(reports) > 1:
            print(f"\n{name}")
        print_report(report)


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
