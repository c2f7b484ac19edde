"""What a run gave, as a report: summaries, rooflines, machine and versions; nothing personal."""

import datetime
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from macai.bench.report.document import KIND, VERSION, Document
from macai.bench.rounds import Measured, Run
from macai.bench.statistics import quantile, summarise
from macai.page.machine import machine

BEST = 0.95
"""The quantile of the probes that counts as what the machine can do, in a disturbed run too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a report has besides the run.

    Attributes:
        version: Of macai, and versions: of each package.
        chip: The processor's name, and backend: what MLX computes with.
        dtype: What the machine's own speed was measured in.
        commands: How to do it again.
        absent: What is not in the report, and why.
        beside: What this report and that of the version it was measured beside share.
    """

    version: str
    versions: Mapping[str, str | None]
    chip: str | None
    backend: str
    dtype: str
    quick: bool
    seconds: float
    commands: Sequence[str]
    absent: Mapping[str, str] = field(default_factory=dict)
    sustained: Sequence[Mapping[str, Any]] = ()
    placement: Sequence[Mapping[str, Any]] = ()
    energy: Sequence[Mapping[str, Any]] = ()
    beside: str | None = None


def make_report(run: Run, around: Around) -> Document:
    """Return a report of the figures that have a sample; there must be one."""
    measured = [m for m in run.measured.values() if m.values]
    speed = _speed(measured, around.dtype)
    chip = {"chip": around.chip} if around.chip else {}
    return {
        "kind": KIND,
        "version": VERSION,
        "runs": [
            {
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "tool": f"macai {around.version}",
                "machine": {**machine(), **chip, "backend": around.backend},
                "versions": dict(around.versions),
                "settings": {
                    "quick": around.quick,
                    "rounds": run.rounds,
                    "complete": run.complete,
                    "seconds": round(around.seconds, 1),
                    **({"beside": around.beside} if around.beside else {}),
                },
                "commands": list(around.commands),
                "speed": speed,
                "figures": [_figure(m, speed) for m in measured],
                "sustained": [dict(curve) for curve in around.sustained],
                "placement": [dict(part) for part in around.placement],
                "energy": [dict(part) for part in around.energy],
                "absent": [{"what": what, "why": why} for what, why in around.absent.items()],
            }
        ],
    }


def summarised(figure: dict[str, Any]) -> dict[str, Any]:
    """Return a figure of a report with its summary computed from its values, whoever wrote it."""
    summary = summarise(figure["values"], seed=len(figure["id"]))
    return figure | {name: _rounded(value) for name, value in summary._asdict().items()}


def _figure(measured: Measured, speed: Mapping[str, Any]) -> dict[str, Any]:
    figure = measured.figure
    result: dict[str, Any] = {
        "id": figure.id,
        "section": figure.section,
        "name": figure.name,
        "subject": figure.subject,
        "unit": figure.unit,
        "better": figure.better,
        "parameters": dict(figure.parameters),
        "values": [_rounded(value) for value in measured.values],
        "seconds": [round(second, 2) for second in measured.seconds],
        "machine_flops_per_second": [_rounded(s.flops_per_second) for s in measured.speeds],
        "machine_bytes_per_second": [_rounded(s.bytes_per_second) for s in measured.speeds],
        "others": [None if o is None else round(o, 3) for o in measured.others],
    }
    if figure.work is not None:
        limit, bound = figure.work.limit(speed["flops_per_second"], speed["bytes_per_second"])
        result |= {"limit": _rounded(limit), "bound": bound}
        result |= {"flops": _rounded(figure.work.flops), "bytes": _rounded(figure.work.bytes)}
    return summarised(result)


def _speed(measured: Sequence[Measured], dtype: str) -> dict[str, Any]:
    speeds = [speed for m in measured for speed in m.speeds]
    others = [o for m in measured for o in m.others if o is not None]
    result: dict[str, Any] = {
        "dtype": dtype,
        "flops_per_second": _rounded(quantile([s.flops_per_second for s in speeds], BEST)),
        "bytes_per_second": _rounded(quantile([s.bytes_per_second for s in speeds], BEST)),
    }
    return result | ({"others": round(statistics.median(others), 2)} if others else {})


def _rounded(value: float) -> float:
    """Six digits: more than any clock here is good for."""
    return float(f"{value:.6g}")
