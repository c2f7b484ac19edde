"""`macai bench`: measure this machine, and write a page about it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

What = Literal["train", "generate", "image", "coreml", "all"]


def bench(
    what: Annotated[What | None, typer.Argument(help="What to measure; all if not given.")] = None,
    model: Annotated[
        str, typer.Option(help="Of generate and train: a name, a folder, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    image_model: Annotated[
        str | None, typer.Option(help="Of image: a name, a folder, a checkpoint or a hub id.")
    ] = None,
    package: Annotated[
        Path | None, typer.Option(help="Of coreml: the bundle that macai export llm wrote.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller sizes and 10 rounds: five minutes.")
    ] = False,
    sustained: Annotated[
        bool, typer.Option("--sustained", help="Then go on with one figure, to see it slow down.")
    ] = False,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long --sustained goes on.")] = 10.0,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: say what differs between two reports.", metavar="A B"),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            help="Another environment's: measure in turns with the macai it has.",
            metavar="PYTHON",
        ),
    ] = None,
    imported: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Add a device's report to that in --out; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write the report to.")] = Path("bench"),
    force: Annotated[bool, typer.Option("--force", help="Replace a report in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure training, generation, images and exported packages on this machine, and report it.

    Writes report.json, report.md and report.html into --out; nothing in them is personal. Samples
    of all figures take turns, so a slow moment of the machine meets all of them. Ctrl-C ends it
    after the sample at hand, with a report of what was measured until then.

    With --beside, say ../main/.venv/bin/python, another version of macai takes turns with this one,
    sample by sample: beside.json is its report, and comparison.md and comparison.json say what this
    one does otherwise. It takes twice as long.

    Example: macai bench all --quick --package MyModel --out bench
    """
    from macai.cli.bench_reports import compare_reports, import_reports
    from macai.cli.bench_run import Wanted, run
    from macai.errors import UsageError

    if compare is not None:
        if what is not None or imported or beside:
            raise UsageError(
                "--compare reads two reports and measures nothing",
                hint="leave out the section, --import and --beside",
            )
        compare_reports(*compare, as_json=as_json)
        return
    if imported:
        if what is not None or beside:
            raise UsageError(
                "--import measures nothing",
                hint="measure first, --beside too, then import into the same --out",
            )
        import_reports(imported, out, as_json=as_json)
        return
    wanted = Wanted(
        what=what or "all",
        model=model,
        image_model=image_model,
        package=package,
        quick=quick,
        sustained_seconds=60 * minutes if sustained else 0.0,
        beside=beside,
    )
    run(wanted, out=out, force=force, as_json=as_json)
