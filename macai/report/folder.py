"""The folder of a run as its page needs it."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macai.errors import ReportError
from macai.files import atomic_file
from macai.train.metrics import METRICS
from macai.train.run import RECIPE

RECORD = "run.json"
REPORT = "report.html"

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """What a run left so far.

    Attributes:
        record: Of run.json; empty where there is none.
        recipe: Of recipe.toml.
        steps: The lines of metrics.jsonl that are of steps.
        validations: Those of validations.
        pictures: (step, file) of those that were made on the way.
    """

    record: Line
    recipe: Line
    steps: list[Line]
    validations: list[Line]
    pictures: list[tuple[int, Path]]


def read_folder(folder: Path) -> RunFolder:
    """Read what a run left, whether it ended or not.

    Raises:
        ReportError: it is not the folder of a run.
    """
    if not (folder / RECIPE).is_file():
        raise ReportError(
            f"{folder}: not the folder of a training run: no {RECIPE}",
            hint="give what macai train got as --out",
        )
    try:
        recipe = tomllib.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except ValueError as e:
        raise ReportError(f"{folder / RECIPE}: is not TOML: {e}") from e
    lines = list(_lines(folder / METRICS))
    files = [(int(line["step"]), folder / str(line["sample"])) for line in lines if _made(line)]
    return RunFolder(
        record=old_record(folder),
        recipe=recipe,
        steps=[line for line in lines if _has(line, "loss", "seconds")],
        validations=[line for line in lines if _has(line, "valid_loss")],
        pictures=[(step, file) for step, file in files if file.is_file()],
    )


def write_report(folder: Path) -> Path:
    """Write report.html and return where it is; raise ReportError as `read_folder`."""
    from macai.report.page import page

    text = page(read_folder(folder))
    with atomic_file(folder / REPORT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / REPORT


def old_record(folder: Path) -> dict[str, Any]:
    """Return what run.json of a folder says; nothing if there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _lines(file: Path) -> Iterator[Line]:
    """Yield the lines of metrics.jsonl, but not one that a kill cut off."""
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and _has(line, "step"):
            yield line


def _has(line: Line, *keys: str) -> bool:
    """Whether there is a finite number under each of the keys."""
    values = [line.get(key) for key in keys]
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _made(line: Line) -> bool:
    """Whether a line is of pictures; what a file is called, it does not choose."""
    name = line.get("sample")
    return isinstance(name, str) and Path(name).parts[:1] == ("samples",) and ".." not in name
