"""macai.json: what an app has to know of an exported language model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macai.errors import PackageError, UsageError

FILE = "macai.json"
CONTRACT = 1
"""Raised when an app written for one version would misread the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionInfo:
    """One function of a package.

    Attributes:
        tokens: How many it takes at once.
        inputs: {"dtype", "shape"} by name.
        outputs: Likewise.
    """

    tokens: int
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A bundle's contract.

    Attributes:
        package: The package's folder, beside the manifest.
        sha256: Over names and bytes of the package's files: see package.package_hash.
        functions: See llm.py for what they do.
        states: {"dtype", "shape"} by name.
        context: The most positions it keeps.
        eos_token_ids: Every one of them ends a reply.
        weights: How they are stored.
        compute_units: Where it is meant to run, as Core ML's configuration calls it.
        adapters: {"name", "functions"} of each adapter that has functions of its own, by the name
            of the plain model's function that does the same.
        source: Model and adapter it was made from, and the model's licence if it is known.
    """

    name: str
    package: str
    sha256: str
    bytes: int
    functions: dict[str, FunctionInfo]
    states: dict[str, dict[str, Any]]
    context: int
    vocab_size: int
    eos_token_ids: list[int]
    bos_token_id: int | None
    precision: str
    weights: str
    source: dict[str, str]
    macai: str
    profile: str = "gpu"
    compute_units: str = "cpuAndGPU"
    minimum_os: dict[str, str] = field(default_factory=lambda: {"iOS": "18.0", "macOS": "15.0"})
    adapters: list[dict[str, Any]] = field(default_factory=list)
    kind: str = "llm"
    contract: int = CONTRACT

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def is_exact(self) -> bool:
        """Whether the weights are the model's own, not compressed for the package."""
        return self.weights in ("fp16", "fp32", "keep")

    @property
    def prefills(self) -> list[str]:
        """The plain model's functions that take several tokens at once, the longest first."""
        others = {f for adapter in self.adapters for f in adapter["functions"].values()}
        several = [n for n, f in self.functions.items() if f.tokens > 1 and n not in others]
        return sorted(several, key=lambda n: -self.functions[n].tokens)

    def functions_of(self, adapter: str | None) -> dict[str, str]:
        """Return the function of an adapter, or of the plain model, for each of the plain ones.

        Raises:
            UsageError: there is no such adapter.
        """
        if adapter is None:
            return {name: name for name in (*self.prefills, "decode")}
        names = {a["name"]: dict(a["functions"]) for a in self.adapters}
        if adapter not in names:
            known = ", ".join(names) or "none as a function of its own"
            raise UsageError(f"{self.name} has no adapter '{adapter}'", hint=f"it has {known}")
        return names[adapter]


def read_manifest(folder: Path) -> Manifest:
    """Read macai.json of a bundle.

    Raises:
        PackageError: there is none, or it is not what this version of macai writes.
    """
    file = folder / FILE
    if not file.is_file():
        hint = "give the folder that macai export llm wrote, with the package and more in it"
        if folder.suffix == ".mlpackage" and folder.is_dir():
            bundle = folder.absolute().parent
            hint = f"that is the package alone: give the bundle it is in, {bundle}"
        raise PackageError(
            f"{folder}: {'no ' + FILE + ' in it' if folder.is_dir() else 'no such folder'}",
            hint=hint,
        )
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["kind"] != "llm":
            raise PackageError(
                f"{folder} is a bundle of {value['kind']}, and this is for language models",
                hint="macai verify knows both",
            )
        return _manifest(value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise PackageError(
            f"{file}: not a manifest: {type(e).__name__}: {e}", hint="export the bundle again"
        ) from e


def _manifest(value: Mapping[str, Any]) -> Manifest:
    if value["contract"] != CONTRACT:
        raise ValueError(f"contract {value['contract']}, this version reads {CONTRACT}")
    functions = {name: FunctionInfo(**f) for name, f in value["functions"].items()}
    manifest = Manifest(**(dict(value) | {"functions": functions}))
    numbers = (manifest.context, manifest.vocab_size, *(f.tokens for f in functions.values()))
    if not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError("context, vocab_size and tokens must be positive")
    named = [f for adapter in manifest.adapters for f in adapter["functions"].values()]
    if missing := sorted({*named, "decode"} - functions.keys()):
        raise ValueError(f"it has no function {missing[0]}")
    if "/" in manifest.package or ".." in manifest.package:
        raise ValueError("it names a package that is not beside it")
    return manifest
