"""MIL functions to a saved .mlpackage whose bytes depend on nothing but what it holds."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
from coremltools.converters.mil.mil import Program
from coremltools.proto import Model_pb2

from macai.coreml.description import Metadata, describe
from macai.coreml.flexible import Flexible
from macai.coreml.program import write_program
from macai.coreml.weight_file import WeightFile
from macai.errors import ExportError, UsageError
from macai.files import atomic_directory

TARGETS = {"iOS16": ct.target.iOS16, "iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}
# What MIL calls the operations of each.
_OPSETS = {ct.target.iOS16: "CoreML6", ct.target.iOS17: "CoreML7", ct.target.iOS18: "CoreML8"}
_DATA = Path("Data/com.apple.CoreML")
MODEL = _DATA / "model.mlmodel"
_WEIGHTS = _DATA / "weights/weight.bin"
# Of the name space only: the ids in a package name nothing but its two items.
_NAMESPACE = uuid.UUID("5f0c7a52-6f0e-5b7a-9d6c-3b1f6d1f4c11")


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
    flexible: Mapping[str, Flexible] | None = None,
    force: bool = False,
) -> None:
    """Write MIL functions as one package; a weight is stored once for all of them.

    `flexible` has the sizes that inputs may have, by function.

    Nothing of coremltools' converter is run: some of its passes lose writes to states and float32
    parts of a float16 program (remove_redundant_ops, add_fp16_cast, in 9.0).

    Raises:
        OutputError: `path` exists and not `force`, or cannot be written.
        ExportError: coremltools refuses the program.
    """
    if path.suffix != ".mlpackage":
        raise UsageError(f"{path}: a package is a folder called *.mlpackage")
    _check(functions)
    wide = opset >= ct.target.iOS18
    with atomic_directory(path, force=force) as folder:
        (folder / _DATA).mkdir(parents=True)
        spec = Model_pb2.Model(specificationVersion=opset.value)
        spec.description.CopyFrom(describe(functions, default, metadata, flexible or {}))
        weights = WeightFile(folder / _WEIGHTS, wide=wide)
        program = write_program(
            functions, weights, named=default, opset=_OPSETS[opset], inline=wide
        )
        weights.close()
        spec.mlProgram.CopyFrom(program)
        (folder / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
        _write_manifest(folder)


def _check(functions: Mapping[str, Any]) -> None:
    """Have coremltools look at the program as it does before it writes one."""
    try:
        program = Program()
        for name, function in functions.items():
            program.add_function(name, function)
        program._check_early_error_out_for_invalid_program()
    except (ValueError, RuntimeError, NotImplementedError) as e:
        raise ExportError(f"coremltools refuses the program: {e}") from e


def _write_manifest(folder: Path) -> None:
    entries = {}
    items = [("model.mlmodel", "CoreML Model Specification", MODEL)]
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
