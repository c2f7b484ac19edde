"""What is examined: a package, and the bundle around it if there is one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from macai.errors import PackageError
from macai.mil.lint.view import View
from macai.mil.package import Package, open_package

MANIFEST = "macai.json"
"""What makes a folder a bundle. It is read here as any program would, not as its writer does."""
JSON_ERRORS = (OSError, ValueError, RecursionError)


class Bundle:
    """A folder with a package, what it promises, and what belongs to the model.

    Attributes:
        folder: The folder.
        manifest: What macai.json holds; empty when it cannot be read.
        problem: Why it cannot be read, or "".
    """

    def __init__(self, folder: Path, chunk: Mapping[str, Any] | None = None) -> None:
        """Read it. A chunk, one of several packages, says itself what the manifest says of one."""
        self.folder = folder
        self.problem = ""
        self.manifest: dict[str, Any] = {}
        try:
            self.manifest = _object(folder / MANIFEST)
        except JSON_ERRORS as e:
            self.problem = str(e)
        self.manifest |= chunk or {}

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The packages of a model that is in several; empty if it is in one."""
        given = self.manifest.get("chunks")
        return [c for c in given if isinstance(c, dict)] if isinstance(given, list) else []

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in one of its JSON files; an empty one if it is not there or broken."""
        try:
            return _object(self.folder / name)
        except JSON_ERRORS:
            return {}

    def part(self, key: str) -> dict[str, Any]:
        """Return an object of the manifest; an empty one if there is none."""
        value = self.manifest.get(key)
        return value if isinstance(value, dict) else {}

    def number(self, key: str) -> int | None:
        """Return a whole number of the manifest."""
        value = self.manifest.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        return self.json("tokenizer.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return self.json("tokenizer_config.json")

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """The ids of the added tokens of tokenizer.json, special ones among them, by text."""
        added = self.tokenizer.get("added_tokens")
        tokens = [t for t in added if isinstance(t, dict)] if isinstance(added, list) else []
        return {
            str(t["content"]): t["id"]
            for t in tokens
            if isinstance(t.get("id"), int) and "content" in t
        }

    @cached_property
    def chat_template(self) -> str:
        """The chat template, from whichever file has it; "" if none does."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
        for source in (self.json("chat_template.json"), self.tokenizer_config):
            template = source.get("chat_template")
            if isinstance(template, list):  # several, by name
                template = " ".join(str(t.get("template")) for t in template if isinstance(t, dict))
            if isinstance(template, str) and template:
                return template
        return ""


def _object(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} is not an object")
    return value


@dataclass
class Subject:
    """A package ready to be examined.

    Attributes:
        package: As the runtime opened it.
        bundle: The folder it is in, if that is a bundle.
        scans: What rules about constants have seen already, by id of the constant.
    """

    package: Package
    bundle: Bundle | None = None
    scans: dict[int, Any] = field(default_factory=dict)
    views: list[View] = field(init=False)

    def __post_init__(self) -> None:
        self.views = [View(function) for function in self.package.functions.values()]

    @property
    def meant_for_neural_engine(self) -> bool:
        """Whether the bundle says that it runs there; a package alone says nothing."""
        units = self.bundle.manifest.get("compute_units") if self.bundle else None
        return units in ("all", "cpuAndNeuralEngine")

    @cached_property
    def package_json(self) -> dict[str, Any]:
        """The package's own Manifest.json, which opening it has proven to be an object."""
        return _object(self.package.path / "Manifest.json")


def open_subjects(path: Path) -> list[Subject]:
    """Open a .mlpackage, or a folder with one in it, or a bundle of several.

    Raises:
        PackageError: there is no package, or it cannot be opened.
    """
    if (path / MANIFEST).is_file():
        whole = Bundle(path)
        bundles = [Bundle(path, chunk) for chunk in whole.chunks] or [whole]
        return [Subject(open_package(_package_of(bundle)), bundle) for bundle in bundles]
    if path.is_dir() and not (path / "Manifest.json").is_file():
        inside = _packages(path)
        if len(inside) == 1:
            return [Subject(open_package(inside[0]))]
        raise PackageError(
            f"{path}: neither {MANIFEST} nor Manifest.json in it"
            + (f", and {len(inside)} packages" if inside else ""),
            hint="give a .mlpackage folder, or a bundle that macai export wrote",
        )
    return [Subject(open_package(path))]


def _package_of(bundle: Bundle) -> Path:
    """Return the package a manifest names, or the only one there is when it names none."""
    name = bundle.manifest.get("package")
    if isinstance(name, str) and Path(name).name == name and name not in ("", ".", ".."):
        return bundle.folder / name
    inside = _packages(bundle.folder)
    if len(inside) == 1:
        return inside[0]
    raise PackageError(
        f"{bundle.folder / MANIFEST}: it names no package beside it",
        hint=bundle.problem or f"there are {len(inside)} packages; export the bundle again",
    )


def _packages(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.mlpackage") if p.is_dir())
