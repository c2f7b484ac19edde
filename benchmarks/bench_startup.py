"""Seconds until `macai --help` has answered, beside an empty Python and `import typer` alone.

python -m benchmarks.bench_startup
"""

import sys
from functools import partial

from benchmarks.harness import in_turns, process, tell

COMMANDS = {
    "help": [sys.executable, "-m", "macai", "--help"],
    "typer": [sys.executable, "-c", "import typer"],
    "python": [sys.executable, "-c", ""],
}


def main() -> None:
    """Measure five rounds, after one that fills the file cache."""
    sides = {name: partial(process, command) for name, command in COMMANDS.items()}
    tell("startup", in_turns(sides, 5, warm_up=1), to="python")


if __name__ == "__main__":
    main()
