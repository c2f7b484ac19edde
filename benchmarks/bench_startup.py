"""Seconds until `macai --help` has answered, beside an empty Python and `import typer` alone.

    python benchmarks/bench_startup.py

The three alternate in one run, so that a slow moment of the machine meets them all.
"""

import json
import statistics
import subprocess
import sys
import time

RUNS = 5
COMMANDS = {
    "help": [sys.executable, "-m", "macai", "--help"],
    "typer": [sys.executable, "-c", "import typer"],
    "python": [sys.executable, "-c", ""],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print one JSON line: medians in seconds."""
    for command in COMMANDS.values():
        seconds(command)  # fills the file cache
    runs = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(RUNS)]
    medians = {name: round(statistics.median(r[name] for r in runs), 3) for name in COMMANDS}
    print(json.dumps({"benchmark": "startup", "runs": RUNS, "median_seconds": medians}))


if __name__ == "__main__":
    main()
