"""A report, and what two of them say together, as Markdown: for a pull request."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from macai.bench.report.compare import Comparison
from macai.bench.report.make import summarised
from macai.bench.report.words import SECTIONS, title
from macai.page.words import amount, interval, machine_line, scaled

_ENDS = (("low", "high"), ("p10", "p90"))
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~])")


def markdown(report: Mapping[str, Any]) -> str:
    """Return the whole report; what others wrote in it is escaped."""
    return "\n\n".join("\n".join(_run(run)) for run in report["runs"]) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison: what is significant comes first."""
    lines = []
    for name, run in (("before", comparison.first), ("after", comparison.second)):
        line = f"{run['tool']}, {machine_line(run)}, {run['date']}"
        lines += [f"{name}: {escaped(line)}", ""]
    if comparison.in_turns:
        lines += ["The two took turns, sample by sample.", ""]
    if not comparison.same_machine:
        lines += ["These are two machines: what differs is not the code's alone.", ""]
    ordered = sorted(comparison.differences, key=lambda d: not d.is_significant)
    rows = []
    for d in ordered:
        unit = d.figure["unit"]
        rows.append(
            [
                escaped(f"{d.figure['section']}: {d.figure['subject']}: {title(d.figure)}"),
                amount(d.before, unit),
                amount(d.after, unit),
                f"{d.change:+.1%}",
                f"{d.low:+.1%} to {d.high:+.1%}",
                "" if d.p is None else f"{d.p:.2g}",
                f"**{d.verdict}**" if d.is_significant else d.verdict,
            ]
        )
    head = ["", "before", "after", "change", "the machine's", "p", ""]
    significant = sum(d.is_significant for d in comparison.differences)
    lines += [*table(head, rows), ""]
    lines.append(f"{significant} of {len(rows)} figures differ significantly.")
    lines += [f"only in one: {escaped(name)}" for name in comparison.missing]
    return "\n".join(lines) + "\n"


def escaped(text: object) -> str:
    """Return a text that Markdown shows as it is, in a table as well."""
    return _SPECIAL.sub(r"\\\1", str(text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; every column but the first is aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _run(run: Mapping[str, Any]) -> list[str]:
    settings = run["settings"]
    lines = [f"## macai bench: {escaped(machine_line(run))}", ""]
    kind = "quick" if settings["quick"] else "whole"
    what = f"{escaped(run['tool'])}, {run['date']}, a {kind} run of {settings['rounds']} rounds"
    lines.append(what + ("." if settings["complete"] else ", stopped before its end."))
    if speed := run.get("speed"):
        lines.append(
            f"Matrix products {scaled(speed['flops_per_second'], 'FLOP/s')}, reading "
            f"{scaled(speed['bytes_per_second'], 'B/s')} ({escaped(speed['dtype'])})."
        )
        if speed.get("others", 0) > 0.1:
            lines.append(
                f"Other programs had {speed['others']:.1f} of {run['machine']['cores']} "
                "processors meanwhile: it could be faster than this."
            )
    for section, heading in SECTIONS.items():
        figures = [summarised(f) for f in run["figures"] if f["section"] == section]
        if figures:
            lines += ["", f"### {heading}", "", *_table(figures)]
    lines += _rest(run)
    return lines


def _table(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["", "median", "95 % interval", "p10 to p90", "of the roofline"]
    rows = []
    for figure in figures:
        unit, one = figure["unit"], len(figure["values"]) == 1
        ends = [interval(figure[a], figure[b], unit) for a, b in _ENDS]
        roof = figure.get("limit")
        rows.append(
            [
                f"{escaped(figure['subject'])}: {escaped(title(figure))}",
                amount(figure["median"], unit),
                *(["one sample", ""] if one else ends),
                f"{figure['median'] / roof:.0%} ({figure['bound']})" if roof else "",
            ]
        )
    return table(head, rows)


def _rest(run: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if run.get("absent"):
        lines += ["", "Not measured:", ""]
        lines += [f"- {escaped(a['what'])}: {escaped(a['why'])}" for a in run["absent"]]
    packages = [f"{name} {version}" for name, version in run["versions"].items() if version]
    lines += ["", f"With {escaped(', '.join(packages))}."]
    if run.get("commands"):
        lines += ["", "To do it again:", "", *(f"    {c}" for c in run["commands"])]
    return lines
