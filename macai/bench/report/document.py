"""report.json: reading one from anywhere without trusting it, and writing one.

schema.json beside this file is the contract; docs/bench.md explains it.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from macai.errors import ReportError
from macai.files import write_json

SCHEMA = Path(__file__).parent / "schema.json"
KIND, VERSION = "macai-bench", 1
MOST_BYTES = 32 << 20
"""A report of 2000 figures of 100 samples has a tenth of it."""

Document = dict[str, Any]
_PARALLEL = ("seconds", "machine_flops_per_second", "machine_bytes_per_second", "others")


def read_report(path: Path) -> Document:
    """Return a report that was checked in every respect that this package relies on.

    Raises:
        ReportError: it is too large, no JSON, or not of the schema; it says where.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ReportError(f"{path}: larger than {MOST_BYTES >> 20} MiB: no report is")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise ReportError(
            f"{path}: cannot be read: {why}", hint="give a report.json of macai bench"
        ) from e
    return parse_report(text, source=str(path))


def parse_report(text: str, *, source: str) -> Document:
    """Return the report that a text is; see `read_report`."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_short,
        )
    except (ValueError, RecursionError) as e:
        raise ReportError(f"{source}: not JSON: {e}") from e
    if isinstance(value, dict) and value.get("kind") == KIND and value.get("version") != VERSION:
        raise ReportError(
            f"{source}: a report of version {value.get('version')!r}, and this reads {VERSION}",
            hint="use the macai that wrote it, or a newer one",
        )
    check_report(value, source=source)
    return value


def check_report(value: Any, *, source: str) -> None:
    """Raise ReportError if a value is no report: of its schema, and each list as long as others."""
    import fastjsonschema

    try:
        _validator()(value)
    except fastjsonschema.JsonSchemaValueException as e:
        raise ReportError(
            f"{source}: not a report of macai bench: {_shown(e.message)}",
            hint="docs/bench.md says what one is",
        ) from e
    for number, run in enumerate(value["runs"]):
        ids = [figure["id"] for figure in run["figures"]]
        if len(ids) != len(set(ids)):
            raise ReportError(f"{source}: run {number + 1} has two figures of one id")
        for figure in run["figures"]:
            _check_lengths(figure, source)
        for curve in run.get("sustained", ()):
            if len(curve["seconds"]) != len(curve["values"]):
                raise ReportError(f"{source}: a sustained curve has not as many seconds as values")


def write_report(path: Path, value: Document) -> None:
    """Write a report, after making sure that it is one."""
    check_report(value, source=str(path))
    write_json(path, value)


def merged(first: Document, second: Document) -> Document:
    """Return the runs of both; one that is in both is there once."""
    runs = list(first["runs"])
    runs += [run for run in second["runs"] if run not in runs]
    return {"kind": KIND, "version": VERSION, "runs": runs}


@functools.cache
def _validator() -> Callable[[Any], Any]:
    import fastjsonschema

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    compiled: Callable[[Any], Any] = fastjsonschema.compile(schema, use_default=False)
    return compiled


def _check_lengths(figure: Mapping[str, Any], source: str) -> None:
    for name in _PARALLEL:
        if name in figure and len(figure[name]) != len(figure["values"]):
            raise ReportError(
                f"{source}: {_shown(figure['id'])} has {len(figure['values'])} values and "
                f"{len(figure[name])} of {name}"
            )


def _shown(text: str) -> str:
    """What others wrote, for a terminal: on one line, without what could steer one."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= 200 else f"{plain[:200]}..."


def _unique(members: list[tuple[str, Any]]) -> Document:
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("a key occurs twice")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number beyond a double")
    return number


def _short(digits: str) -> int:
    if len(digits) > 30:
        raise ValueError("an integer of more than 30 digits")
    return int(digits)
