"""`macai verify`: does a package compute what its model computes?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from macai.cli.opening import AdapterOption, RuntimeOption


def verify(
    package: Annotated[Path, typer.Argument(help="The bundle that macai export wrote.")],
    against: Annotated[
        str, typer.Option("--against", help="The model: a name, a folder, a .gguf or a hub id.")
    ],
    adapter: AdapterOption = None,
    functions_of: Annotated[
        str | None,
        typer.Option(help="The adapter of the bundle whose functions are compared, by name."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to compare on; else one that comes with macai.")
    ] = None,
    positions: Annotated[int, typer.Option(min=8, help="Tokens of it to compare.")] = 128,
    runtime: RuntimeOption = "reference",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Run an exported package, and compare it with its model in MLX.

    The exit code is 1 if they do not agree.

    Example: macai verify MyModel --against smollm2-135m --adapter runs/mine
    """
    from macai.cli.export import print_report, verified
    from macai.errors import DataError

    own_text: str | None = None
    if text is not None:
        try:
            own_text = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise DataError(f"{text}: cannot be read: {e}") from e
    report = verified(
        package,
        against,
        adapter,
        positions=positions,
        text=own_text,
        functions_of=functions_of,
        runtime=runtime,
    )
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
    if not report["passed"]:
        raise typer.Exit(1)
