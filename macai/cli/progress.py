"""What long work looks like on stderr: live bars in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0  # between two lines when stderr is no terminal


def console() -> Console:
    """Return a console on stderr; stdout carries results only."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def reporting() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that shows a bar for each `what`."""
    out = console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=out, disable=not out.is_terminal
    ) as bars:
        tasks: dict[str, TaskID] = {}
        printed: dict[str, float] = {}

        def report(what: str, done: int, total: int) -> None:
            if out.is_terminal:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done, total=total)
            elif (
                done >= total or time.monotonic() - printed.get(what, -LINE_SECONDS) >= LINE_SECONDS
            ):
                printed[what] = time.monotonic()
                print(f"{what}: {done} of {total}", file=sys.stderr)

        yield report


def show_picture(escapes: str) -> None:
    """Write what makes a terminal show a picture above a live bar.

    The bar takes over stderr and would leave out escapes that it does not know.
    """
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    stream.write(f"\r\x1b[2K{escapes}")  # in place of the bar, which is drawn anew below it
    stream.flush()
