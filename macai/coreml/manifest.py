"""macai.json: what an app has to know of an exported language model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macai.coreml.profiles import PROFILES
from macai.coreml.slot import Slot
from macai.errors import PackageError, UsageError

FILE = "macai.json"
CONTRACT = 1
"""Raised when an app written for one version would misread the next."""
CHUNKED = 2
"""The contract of a model in several packages, which code for one does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionInfo:
    """One function of a package.

    Attributes:
        tokens: How many it takes at once, or the most of them.
        inputs: {"dtype", "shape"} by name. Where it takes several, "shape" is the least and "most"
            the greatest.
        outputs: Likewise.
    """

    tokens: int
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One of the packages that a model is divided into: its keys are the manifest's own."""

    package: str
    sha256: str
    bytes: int
    functions: dict[str, FunctionInfo]
    states: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A bundle's contract.

    Attributes:
        package: The package's folder, beside the manifest; of a model in chunks the first one's.
        sha256: Over names and bytes of the package's files: see package.package_hash. Of a model
            in chunks over theirs, one after another.
        functions: What they do depends on the profile: see profiles.
        states: {"dtype", "shape"} by name.
        context: The most positions it keeps.
        eos_token_ids: Every one of them ends a reply.
        weights: How they are stored.
        compute_units: Where it is meant to run, as Core ML's configuration calls it.
        slot: Room for an adapter at run time, if there is: a state beside `states`.
        adapters: {"name", "functions"} of each adapter that has functions of its own, by the name
            of the plain model's function that does the same.
        chunks: The packages of a model that is in several, in the order they are run in: each
            function goes through all of them. What one returns but logits, the next one takes,
            hiddenOut as hiddenIn; each keeps a state of its own.
        float16: What was measured of its values: "largest" magnitude on so many "tokens" of text,
            "after" which weight, the largest of each of "layers"; and how many values each function
            has in float32 for it, since they came beyond "limit". See half.py.
        unverified: What nobody has tried on a device, a sentence each: see profiles.
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
    slot: Slot | None = None
    adapters: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    float16: dict[str, Any] = field(default_factory=dict)
    unverified: list[str] = field(default_factory=list)
    kind: str = "llm"
    contract: int = CONTRACT

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def packages(self) -> list[str]:
        """Its packages' folders, in the order they are run in."""
        return [chunk.package for chunk in self.chunks] or [self.package]

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
        others = {f for adapter in self.adapters for f in adapter["functions"].values()}
        if adapter is None:
            return {name: name for name in self.functions if name not in others}
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
        hint = "give the folder that macai export wrote, with the package and more in it"
        if folder.suffix == ".mlpackage" and folder.is_dir():
            bundle = folder.absolute().parent
            hint = f"that is the package alone: give the bundle it is in, {bundle}"
        raise PackageError(
            f"{folder}: {_missing(folder)}",
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


def _missing(folder: Path) -> str:
    if folder.is_dir():
        return f"no {FILE} in it"
    return "a file, not a folder" if folder.exists() else "no such folder"


def _manifest(value: Mapping[str, Any]) -> Manifest:
    chunks = [Chunk(**(c | {"functions": _functions(c)})) for c in value.get("chunks", [])]
    known = CHUNKED if chunks else CONTRACT
    if value["contract"] != known:
        raise ValueError(f"contract {value['contract']}, this version reads {known}")
    functions = _functions(value)
    slot = Slot.parse(value["slot"]) if value.get("slot") else None
    read = {"functions": functions, "slot": slot, "chunks": chunks}
    manifest = Manifest(**(dict(value) | read))
    numbers = (manifest.context, manifest.vocab_size, *(f.tokens for f in functions.values()))
    if not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError("context, vocab_size and tokens must be positive")
    named = [f for adapter in manifest.adapters for f in adapter["functions"].values()]
    if manifest.profile not in PROFILES:
        raise ValueError(f"profile {manifest.profile}, this version knows {', '.join(PROFILES)}")
    needed = {*named, PROFILES[manifest.profile].default}
    if missing := sorted(needed - functions.keys()):
        raise ValueError(f"it has no function {missing[0]}")
    if any("/" in name or ".." in name for name in manifest.packages):
        raise ValueError("it names a package that is not beside it")
    if any(chunk.functions.keys() != functions.keys() for chunk in chunks):
        raise ValueError("a chunk has other functions than the model")
    return manifest


def _functions(value: Mapping[str, Any]) -> dict[str, FunctionInfo]:
    return {name: FunctionInfo(**info) for name, info in value["functions"].items()}
