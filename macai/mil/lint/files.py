"""Rules about the files of a package, and what it says of itself."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject

_FORMAT = "1.0.0"
_DATE = "com.github.apple.coremltools.conversion_date"


def _root(subject: Subject) -> Path:
    return subject.bundle.folder if subject.bundle else subject.package.path


def _items(subject: Subject) -> dict[str, Any]:
    """Return the entries of Manifest.json by id."""
    entries = subject.package_json.get("itemInfoEntries")
    return entries if isinstance(entries, dict) else {}


def _paths(subject: Subject) -> Iterator[tuple[str, Path | None]]:
    """Yield the path of each entry as it is written, and as it is if it stays in the package."""
    data = subject.package.path / "Data"
    for entry in _items(subject).values():
        written = entry.get("path") if isinstance(entry, dict) else None
        target = Path(os.path.normpath(data / written)) if isinstance(written, str) else None
        yield str(written), target if target and target.is_relative_to(data) else None


@rule(
    "manifest-item",
    "error",
    "The package's Manifest.json lists what is not there",
    why="Core ML and Xcode refuse a package with an item missing or outside of it.",
    fix="Copy the whole package folder again, or export it again.",
)
def manifest_item(subject: Subject) -> Iterator[Finding]:
    for written, path in _paths(subject):
        if path is None or not path.exists():
            yield Finding(f"{written} is {'missing' if path else 'outside of the package'}")


@rule(
    "manifest-format",
    "warning",
    "The package's Manifest.json is of another format",
    why="Core ML reads format 1.0.0; author, description and name belong to every item.",
    fix="Export the package again.",
)
def manifest_format(subject: Subject) -> Iterator[Finding]:
    version = subject.package_json.get("fileFormatVersion")
    if version != _FORMAT:
        yield Finding(f"fileFormatVersion is {json.dumps(version)}")
    for key, entry in _items(subject).items():
        given = entry if isinstance(entry, dict) else {}
        missing = [k for k in ("author", "description", "name", "path") if k not in given]
        if missing:
            yield Finding(f"item {key} has no {', '.join(missing)}")


@rule(
    "unlisted-file",
    "note",
    "A file that the package's Manifest.json does not list",
    why="Core ML does not copy it when it compiles: what an app reads from it is gone then.",
    fix="Put tokenizer and licence beside the package, not into it.",
)
def unlisted_file(subject: Subject) -> Iterator[Finding]:
    package = subject.package.path
    listed = [path for _, path in _paths(subject) if path]
    for file in sorted(p for p in package.rglob("*") if p.is_file()):
        is_known = file == package / "Manifest.json"
        if not is_known and not any(file.is_relative_to(path) for path in listed):
            yield Finding(file.relative_to(package).as_posix())


@rule(
    "link-in-package",
    "warning",
    "A symbolic link",
    why="Copied, zipped or installed it leads nowhere, or to something else.",
    fix="Replace it by what it leads to.",
)
def link_in_package(subject: Subject) -> Iterator[Finding]:
    root = _root(subject)
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            yield Finding(path.relative_to(root).as_posix())


@rule(
    "unreadable-file",
    "warning",
    "A file that not everybody may read",
    why="It is copied with its rights: another user, a web server or a signing step then fails. "
    "coremltools 9.0 saves models and weights so.",
    fix="chmod -R u+rwX,go+rX",
)
def unreadable_file(subject: Subject) -> Iterator[Finding]:
    root = _root(subject)
    for path in [root, *sorted(root.rglob("*"))]:
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        needed = 0o555 if path.is_dir() else 0o444
        if mode & needed != needed:
            name = path.relative_to(root).as_posix()
            yield Finding(f"{name if name != '.' else root.name}: {stat.filemode(mode)}")


@rule(
    "missing-metadata",
    "note",
    "The package does not say who made it, what it is, or under which licence",
    why="Xcode shows author, licence, description and version, and so does whoever gets the "
    "package.",
    fix="Set author, license, short_description and version.",
)
def missing_metadata(subject: Subject) -> Iterator[Finding]:
    package = subject.package
    given = {
        "author": package.author,
        "license": package.license,
        "description": package.short_description,
        "version": package.version,
    }
    missing = [name for name, value in given.items() if not value.strip()]
    if missing:
        yield Finding(f"no {', '.join(missing)}")


@rule(
    "conversion-date",
    "note",
    "The package holds the date it was converted on",
    why="Two exports of one model differ then, and no hash tells whether they are the same.",
    fix="Remove the entry from the metadata.",
)
def conversion_date(subject: Subject) -> Iterator[Finding]:
    if _DATE in subject.package.metadata:
        yield Finding(f"{_DATE} = {subject.package.metadata[_DATE]}")
