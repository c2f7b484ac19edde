"""Measures and writes the report: what `macai bench` does unless it only reads reports."""

import json
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import typer

from macai.bench.cases.generate import open_generate
from macai.bench.cases.image import open_image
from macai.bench.cases.package import open_package_cases
from macai.bench.cases.train import open_train
from macai.bench.figure import Opener
from macai.bench.placement import placements
from macai.bench.power import energy, why_no_power
from macai.bench.probe import Probe
from macai.bench.report.compare import compare
from macai.bench.report.document import Document, write_report
from macai.bench.report.files import BESIDE, FILES, write_comparison, write_files
from macai.bench.report.make import Around, make_report
from macai.bench.report.markdown import comparison_markdown, markdown
from macai.bench.rounds import Run, Turn, measure, sustain
from macai.bench.sections import Sections, Version
from macai.catalog import locate_model, locate_pipeline, pipeline_names
from macai.cli.image_open import OWN_MODEL
from macai.cli.progress import reporting
from macai.cli.signals import stop_on_signal
from macai.coreml.manifest import read_manifest
from macai.errors import OutputError, UsageError
from macai.files import require_writable

ROUNDS = {True: 10, False: 20}
BUDGET_SECONDS = {True: 210.0, False: 3600.0}
"""After so many no round begins: with what opening takes, five minutes if it is to be quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure: see the options of `macai bench`."""

    what: str
    model: str
    image_model: str | None
    package: Path | None
    quick: bool
    sustained_seconds: float
    beside: Path | None

    @property
    def command(self) -> str:
        """How to measure it again, on any machine: of a path the last part."""
        parts = ["macai", "bench", self.what]
        parts += ["--quick"] if self.quick else []
        if self.what in ("all", "generate", "train"):
            parts += ["--model", shown(self.model)]
        if self.image_model and self.what in ("all", "image"):
            parts += ["--image-model", shown(self.image_model)]
        if self.package and self.what in ("all", "coreml"):
            parts += ["--package", shown(str(self.package))]
        if self.sustained_seconds:
            parts += ["--sustained", "--minutes", f"{self.sustained_seconds / 60:g}"]
        parts += ["--beside", "PYTHON"] if self.beside else []
        return shlex.join(parts)


def run(wanted: Wanted, *, out: Path, force: bool, as_json: bool) -> None:
    """Measure, write the report, print what it says."""
    require_writable(out)
    _refuse_reports(out, force=force)
    openers, absent = _openers(wanted)
    sides = [Sections(openers)]
    if wanted.beside is not None:
        sides.insert(0, Sections(openers, python=wanted.beside))
    probe = Probe()
    began = time.perf_counter()

    def kill() -> None:
        for side in sides:
            side.kill()

    with stop_on_signal(at_once=kill) as stopped, ExitStack() as stack:
        for side in sides:
            stack.enter_context(side)
        with reporting() as progress:
            watch: dict[str, Any] = {"progress": progress, "should_stop": stopped}
            runs = measure(
                sides,
                list(openers),
                probe,
                rounds=ROUNDS[wanted.quick],
                budget_seconds=BUDGET_SECONDS[wanted.quick] * len(sides),
                **watch,
            )
            curves = _curves(wanted, sides[-1], runs[-1], **watch)
            energies = _energies(sides[-1], runs[-1], absent)
        if not all(any(m.values for m in run.measured.values()) for run in runs):
            print("stopped before anything was measured: nothing is written", file=sys.stderr)
            raise typer.Exit(130)
        why = "five rounds of it would take too long on this machine"
        absent |= dict.fromkeys(runs[-1].left_out, why)
        shared: dict[str, Any] = {"dtype": probe.dtype, "seconds": time.perf_counter() - began}
        shared |= {"absent": absent, "beside": secrets.token_hex(8) if wanted.beside else None}
        extras: dict[str, Any] = {"sustained": curves, "energy": energies}
        extras["placement"] = _placements(wanted, runs[-1])
        reports = [_report(wanted, sides[-1].version, runs[-1], **shared, **extras)]
        if wanted.beside is not None:  # curves, energy and placement are of this version only
            reports.insert(0, _report(wanted, sides[0].version, runs[0], **shared))
        text = written(out, reports, as_json=as_json)
        number = stopped()
    print(text, end="")
    if wanted.beside is not None:
        _name_versions(*(side.version for side in sides))
    if number:
        print(f"stopped: {out} has what was measured until then", file=sys.stderr)
        raise typer.Exit(128 + number)
    print(f"{out / FILES['html']}", file=sys.stderr)


def written(out: Path, reports: Sequence[Document], *, as_json: bool) -> str:
    """Write this version's report, the last one, and what it is beside; return what is printed."""
    *others, report = reports
    write_files(out, report)
    if not others:
        return json.dumps(report, ensure_ascii=False) + "\n" if as_json else markdown(report)
    write_report(out / BESIDE["report"], others[0])  # which is there even if nothing is in common
    comparison = compare(others[0], report)
    write_comparison(out, comparison)
    if not as_json:
        return f"{markdown(report)}\n{comparison_markdown(comparison)}"
    whole = {"report": report, "beside": others[0], "comparison": comparison.to_json()}
    return json.dumps(whole, ensure_ascii=False) + "\n"


def _name_versions(before: Version, after: Version) -> None:
    """Say whose code was measured: two checkouts may have the same number."""
    for name, version in (("before", before), ("after", after)):
        print(f"{name}: macai {version.number} in {version.folder}", file=sys.stderr)
    if before.folder == after.folder:
        print("both are the same files: whatever differs is chance", file=sys.stderr)


def shown(name: str) -> str:
    """Return a model's name as a report has it: of a path only the last part."""
    return Path(name).expanduser().name if Path(name).expanduser().exists() else name


def _openers(wanted: Wanted) -> tuple[dict[str, Opener], dict[str, str]]:
    """Return what opens each section that was asked for, and why the others are left out."""
    makers: dict[str, Callable[[Wanted], Opener | str]] = {
        "generate": partial(_language, open_generate),
        "train": partial(_language, open_train),
        "image": _image,
        "coreml": _coreml,
    }
    openers: dict[str, Opener] = {}
    absent: dict[str, str] = {}
    for name, make in makers.items():
        if wanted.what not in ("all", name):
            continue
        made = make(wanted)
        if isinstance(made, str):
            absent[name] = made
        else:
            openers[name] = made
    if not openers:
        why = next(iter(absent.values()))
        raise UsageError(f"nothing to measure: {why}", hint="macai bench --help has an example")
    if sys.platform != "darwin":
        why = "Core ML exists on macOS only: packages are run by macai's own runtime"
        absent |= {"speed by compute unit": why, "placement of operations": why}
    return openers, absent


def _language(open_section: Callable[..., Any], wanted: Wanted) -> Opener:
    with reporting() as progress:
        path = locate_model(wanted.model, progress=progress)
    return partial(open_section, path.absolute(), shown(wanted.model), quick=wanted.quick)


def _image(wanted: Wanted) -> Opener | str:
    name = wanted.image_model
    if name is None and OWN_MODEL in pipeline_names():
        name = OWN_MODEL
    if name is None:
        return "no --image-model was given"
    path = locate_pipeline(name).absolute()
    return partial(open_image, path, shown(name), quick=wanted.quick)


def _coreml(wanted: Wanted) -> Opener | str:
    if wanted.package is None:
        return "no --package was given"
    manifest = read_manifest(wanted.package)
    return partial(
        open_package_cases,
        wanted.package.absolute(),
        f"{manifest.name} ({manifest.profile}, {manifest.weights})",
        quick=wanted.quick,
        coreml=sys.platform == "darwin",
    )


def _curves(wanted: Wanted, sections: Sections, result: Run, **watch: Any) -> list[dict[str, Any]]:
    """Go on with the first rate that was measured, if that was asked for."""
    if not wanted.sustained_seconds or not result.complete:
        return []
    rates = _rates(result)[:1]
    return [sustain(sections, *r, seconds=wanted.sustained_seconds, **watch) for r in rates]


def _rates(result: Run) -> list[tuple[Turn, str]]:
    """Return the first rate of each section, with its key."""
    keys = ("decode", "speed", "steps")
    found = [(turn, key) for turn in result.turns for key in keys if key in turn.figures]
    return list({turn.section: (turn, key) for turn, key in reversed(found)}.values())[::-1]


def _energies(sections: Sections, result: Run, absent: dict[str, str]) -> list[dict[str, Any]]:
    """Return what a token or a step costs, where the system says it; else why it does not."""
    if (why := why_no_power()) is not None:
        absent["energy"] = why
        return []
    rows = []
    for turn, key in _rates(result) if result.complete else ():

        def sample(turn: Turn = turn, key: str = key) -> float:
            return sections.sample(turn.section, turn.case)[0][key]

        rows.append(energy(sample, turn.figures[key].id))
    return [row for row in rows if row]


def _placements(wanted: Wanted, result: Run) -> list[dict[str, Any]]:
    """Return where Core ML plans to run the package that was measured; on a Mac only."""
    subjects = [
        figure.subject
        for turn in result.turns
        for figure in turn.figures.values()
        if turn.section == "coreml"
    ]
    if sys.platform != "darwin" or wanted.package is None or not subjects:
        return []
    packages = read_manifest(wanted.package).packages
    return placements(wanted.package, packages, subjects[0])


def _report(wanted: Wanted, version: Version, result: Run, **about: Any) -> Document:
    name = mx.device_info().get("device_name")
    around = Around(
        version=version.number,
        versions=version.packages,
        chip=None if name is None else str(name),
        backend="MLX on the CPU" if mx.default_device() == mx.cpu else "MLX with Metal",
        quick=wanted.quick,
        commands=[f"pip install macai=={version.number}", wanted.command],
        **about,
    )
    return make_report(result, around)


def _refuse_reports(out: Path, *, force: bool) -> None:
    for name in (*FILES.values(), *BESIDE.values()):
        if (out / name).exists() and not force:
            raise OutputError(
                f"{out / name} exists already",
                hint="choose another --out, or replace it with --force",
            )
