"""What `macai bench` does with reports that exist: compare two, and put a device's beside ours."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from macai.bench.report.compare import Comparison, compare
from macai.bench.report.document import merged, read_report
from macai.bench.report.files import FILES, write_files
from macai.bench.report.markdown import escaped, markdown, table
from macai.bench.report.words import title
from macai.files import require_writable
from macai.page.words import amount, machine_line


def compare_reports(first: Path, second: Path, *, as_json: bool) -> None:
    """Print what differs."""
    comparison = compare(read_report(first), read_report(second))
    if as_json:
        print(json.dumps(comparison.to_json(), ensure_ascii=False))
    else:
        print("\n".join(comparison_text(comparison)))


def import_reports(files: Sequence[Path], out: Path, *, as_json: bool) -> None:
    """Add runs to the report in `out`, or begin one with them, and write its page anew."""
    require_writable(out)
    existing = out / FILES["json"]
    reports = [read_report(path) for path in ([existing] if existing.exists() else []) + [*files]]
    result = reports[0]
    for report in reports[1:]:
        result = merged(result, report)
    write_files(out, result)
    print(json.dumps(result, ensure_ascii=False) if as_json else markdown(result).rstrip("\n"))
    print(f"{out / FILES['html']}", file=sys.stderr)


def comparison_text(comparison: Comparison) -> list[str]:
    """Return the lines of a comparison, in Markdown: what is significant comes first."""
    lines = [
        f"before: {escaped(machine_line(comparison.first))}, {comparison.first['date']}",
        f"after: {escaped(machine_line(comparison.second))}, {comparison.second['date']}",
        "",
    ]
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
    return lines
