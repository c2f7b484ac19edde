"""`docs/cli.md`: every command's own help, so that there is nothing else to keep up to date.

Run `python -m macai.cli.reference > docs/cli.md` after changing an option.
"""

from collections.abc import Iterator
from typing import Any

import typer

from macai.cli.app import app

WIDTH = 100  # of a line of help, in characters


def reference() -> str:
    """Return the page in Markdown: a section a command, in the order of `macai --help`."""
    sections = [
        f"## {path}\n\n```\n{text}\n```\n" for path, text in _helps(typer.main.get_command(app))
    ]
    head = (
        "# Command line\n\nWritten by `python -m macai.cli.reference > docs/cli.md` "
        "from each command's `--help`.\n"
    )
    return "\n".join([head, *sections])


def _helps(command: Any, path: str = "macai") -> Iterator[tuple[str, str]]:
    """Yield the path and the help of a command, then those of the commands in it."""
    options = {"resilient_parsing": True, "terminal_width": WIDTH, "max_content_width": WIDTH}
    with command.make_context(path, [], **options) as context:
        lines = command.get_help(context).splitlines()
    yield path, "\n".join(line.rstrip() for line in lines)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, f"{path} {name}")


if __name__ == "__main__":
    print(reference(), end="")
