"""What `macai bench` does with reports that exist: compare two, and put a device's beside ours."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from macai.bench.report.compare import compare
from macai.bench.report.document import merged, read_report
from macai.bench.report.files import FILES, write_files
from macai.bench.report.markdown import comparison_markdown, markdown
from macai.files import require_writable


def compare_reports(first: Path, second: Path, *, as_json: bool) -> None:
    """Print what differs."""
    comparison = compare(read_report(first), read_report(second))
    if as_json:
        print(json.dumps(comparison.to_json(), ensure_ascii=False))
    else:
        print(comparison_markdown(comparison), end="")


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
