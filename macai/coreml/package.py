"""MIL functions to a saved .mlpackage whose bytes depend on nothing but what it holds."""

import contextlib
import hashlib
import io
import json
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coremltools as ct
from coremltools.converters.mil.mil import Program
from coremltools.proto import Model_pb2

from macai import __version__
from macai.errors import ExportError, UsageError
from macai.files import atomic_directory

TARGETS = {"iOS16": ct.target.iOS16, "iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}
_DATA = Path("Data/com.apple.CoreML")
_MODEL = _DATA / "model.mlmodel"
_WEIGHTS = _DATA / "weights/weight.bin"
# Of the name space only: the ids in a package name nothing but its two items.
_NAMESPACE = uuid.UUID("5f0c7a52-6f0e-5b7a-9d6c-3b1f6d1f4c11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a package says of itself: Xcode shows the first four."""

    author: str = ""
    license: str = ""
    description: str = ""
    version: str = ""
    user: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


def target(name: str) -> Any:
    """Return coremltools' target of that name; UsageError if macai cannot write it."""
    if name not in TARGETS:
        raise UsageError(f"unknown target '{name}'", hint=f"one of {', '.join(TARGETS)}")
    return TARGETS[name]


def save_package(
    functions: Mapping[str, Any],
    path: Path,
    *,
    opset: Any,
    default: str,
    metadata: Metadata,
    force: bool = False,
) -> None:
    """Write MIL functions as one package; a weight with one name is stored once for all of them.

    No pass of coremltools' pipeline is run: some of them lose writes to states and float32 parts of
    a float16 program (remove_redundant_ops, add_fp16_cast, in 9.0). A program is used up by this.

    Raises:
        OutputError: `path` exists and not `force`, or cannot be written.
        ExportError: coremltools refuses the program.
    """
    if path.suffix != ".mlpackage":
        raise UsageError(f"{path}: a package is a folder called *.mlpackage")
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = default
    # A lone function of another name than "main" has a place in a description of several only.
    program.export_as_multifunction = list(functions) != ["main"]
    with (
        atomic_directory(path, force=force) as folder,
        tempfile.TemporaryDirectory(prefix="macai-", dir=path.absolute().parent) as scratch,
    ):
        made = Path(scratch) / "made.mlpackage"
        _convert(program, made, opset)
        (folder / _DATA / "weights").mkdir(parents=True)
        (folder / _MODEL).write_bytes(_tidied((made / _MODEL).read_bytes(), metadata))
        if (made / _WEIGHTS).exists():
            (made / _WEIGHTS).replace(folder / _WEIGHTS)
        else:
            (folder / _WEIGHTS.parent).rmdir()
        _write_manifest(folder)


def _convert(program: Any, made: Path, opset: Any) -> None:
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # its bars
            warnings.simplefilter("ignore")
            ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=opset,
                compute_precision=ct.precision.FLOAT32,  # no casts: the program has its types
                pass_pipeline=ct.PassPipeline.EMPTY,
                skip_model_load=True,
                package_dir=str(made),
            )
    except (ValueError, RuntimeError, NotImplementedError) as e:
        raise ExportError(f"coremltools refuses the program: {e}") from e


def _tidied(model: bytes, metadata: Metadata) -> bytes:
    """Take the date out of the model's description, and put in what `metadata` says."""
    spec = Model_pb2.Model()
    spec.ParseFromString(model)
    description = spec.description.metadata
    description.userDefined.clear()
    for key, value in sorted(metadata.user.items()):
        description.userDefined[key] = value
    description.userDefined["com.github.apple.coremltools.version"] = ct.__version__
    description.userDefined["macai.version"] = __version__
    description.author, description.license = metadata.author, metadata.license
    description.shortDescription = metadata.description
    description.versionString = metadata.version
    for part in (spec.description, *spec.description.functions):
        for feature in part.input:
            feature.shortDescription = metadata.inputs.get(feature.name, "")
        for feature in part.output:
            feature.shortDescription = metadata.outputs.get(feature.name, "")
    written: bytes = spec.SerializeToString(deterministic=True)
    return written


def _write_manifest(folder: Path) -> None:
    entries = {}
    items = [("model.mlmodel", "CoreML Model Specification", _MODEL)]
    if (folder / _WEIGHTS).exists():
        items.append(("weights", "CoreML Model Weights", _WEIGHTS.parent))
    root = ""
    for name, description, item in items:
        key = str(uuid.uuid5(_NAMESPACE, name)).upper()
        root = root or key
        entries[key] = {
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": item.relative_to("Data").as_posix(),
        }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": root,
    }
    (folder / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


def package_hash(path: Path) -> str:
    """Return the SHA-256 over names and bytes of a package's files."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def package_bytes(path: Path) -> int:
    """Return the size of a package on disk, bytes."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
