"""`macai report`: the page of a training run."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The --out of macai train.")],
) -> None:
    """Write the page of a training run anew: curves, speed, data, answers, configuration.

    macai train leaves report.html at its end and where it is stopped; this is for a run that was
    killed, or is not over yet. The page is one file, and loads nothing.

    Example: macai report runs/mine
    """
    from macai.report import write_report

    print(f"report: {write_report(run)}")
