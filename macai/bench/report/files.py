"""The three files of a report in a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macai.bench.report.document import Document, write_report
from macai.bench.report.markdown import markdown
from macai.bench.report.page import page
from macai.files import atomic_file

FILES: Mapping[str, str] = {"json": "report.json", "md": "report.md", "html": "report.html"}


def write_files(folder: Path, report: Document) -> None:
    """Write report.json, report.md and report.html, each whole or not at all; the JSON first."""
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / FILES["json"], report)
    texts: dict[str, Any] = {"md": markdown(report), "html": page(report)}
    for kind, text in texts.items():
        with atomic_file(folder / FILES[kind]) as temporary:
            temporary.write_text(text, encoding="utf-8")
