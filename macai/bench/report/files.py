"""The files of a report in a folder: three, and three more where two versions were measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macai.bench.report.compare import Comparison
from macai.bench.report.document import Document, write_report
from macai.bench.report.markdown import comparison_markdown, markdown
from macai.bench.report.page import page
from macai.files import atomic_file

FILES: Mapping[str, str] = {"json": "report.json", "md": "report.md", "html": "report.html"}
BESIDE: Mapping[str, str] = {
    "report": "beside.json",
    "json": "comparison.json",
    "md": "comparison.md",
}


def write_files(folder: Path, report: Document) -> None:
    """Write report.json, report.md and report.html, each whole or not at all; the JSON first.

    What an earlier report here was compared with goes: it is not of this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / FILES["json"], report)
    texts: dict[str, Any] = {"md": markdown(report), "html": page(report)}
    for kind, text in texts.items():
        with atomic_file(folder / FILES[kind]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name in BESIDE.values():
        (folder / name).unlink(missing_ok=True)


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write comparison.json and comparison.md."""
    texts = {
        "json": json.dumps(comparison.to_json(), ensure_ascii=False, indent=2) + "\n",
        "md": comparison_markdown(comparison),
    }
    for kind, text in texts.items():
        with atomic_file(folder / BESIDE[kind]) as temporary:
            temporary.write_text(text, encoding="utf-8")
