"""metrics.jsonl: a line of JSON for each step and each validation of a run."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from macai.files import atomic_file, explained
from macai.train.loop import Report

METRICS = "metrics.jsonl"


def log(metrics: Any, values: dict[str, Any]) -> None:
    """Add a line to an open file, for others to read at once; OutputError if the disk is full."""
    with explained(Path(metrics.name)):
        metrics.write(json.dumps(values) + "\n")
        metrics.flush()


def of_step(report: Report) -> dict[str, Any]:
    """Return the line of a step; rewards under names of their own, such as rewards/margin."""
    values = asdict(report)
    rewards = values.pop("rewards")
    return values | {f"rewards/{name}": value for name, value in rewards.items()}


def forget_after(file: Path, step: int) -> None:
    """Take away what was written after the checkpoint of `step`, or was cut off by a crash."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    kept = [line for line in lines if _step(line) <= step]
    with atomic_file(file) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step(line: str) -> float:
    """Return the step of a line; infinity for one that is no whole line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
