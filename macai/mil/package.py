"""Open a saved Core ML package: its manifest, its description and its functions.

A package is a folder: `Manifest.json` lists items, the root item is the model's protobuf, another
the folder of its weights. Nothing outside the package is ever opened.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import Model_pb2
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from macai.errors import PackageError
from macai.mil.blob import BlobFile
from macai.mil.call import guarded
from macai.mil.features import tensor_spec
from macai.mil.function import Function, Limits
from macai.mil.program import Body, parse_function
from macai.mil.types import DAMAGED, Proto, StateType, ValueType

MODEL_PATH = "@model_path/"
DEFAULT_WEIGHT_CACHE_BYTES = 4 << 30
DEFAULT_VALUE_LIMIT_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Package:
    """An opened package.

    Attributes:
        metadata: The user-defined entries; `short_description` and so on are the model's own.
        weight_bytes: Size of the weight files the program uses.
        size_bytes: Size of all files of the package.
    """

    path: Path
    functions: dict[str, Function]
    default_function: str
    specification_version: int
    metadata: dict[str, str]
    short_description: str
    author: str
    license: str
    version: str
    weight_bytes: int
    size_bytes: int

    def make_state(self, function: str | None = None) -> dict[str, np.ndarray]:
        """Return zeros, fp16, for every state of a function (the default one), by name.

        A run changes them in place. They can be handed to any function that has the same states.
        """
        states = self.functions[function or self.default_function].states
        return {
            name: np.zeros(spec.default_shape or (), np.float16) for name, spec in states.items()
        }


def open_package(
    path: Path,
    *,
    weight_cache_bytes: int = DEFAULT_WEIGHT_CACHE_BYTES,
    value_limit_bytes: int = DEFAULT_VALUE_LIMIT_BYTES,
) -> Package:
    """Open the .mlpackage folder `path` without decoding any weight.

    Args:
        path: The folder.
        weight_cache_bytes: How much memory decoded weights may take; those beyond it are decoded
            anew each time they are used.
        value_limit_bytes: How much memory the values of a run may take at any one time.

    Raises:
        PackageError: anything in it is missing, damaged or not an ML Program.
    """
    path = Path(path)
    model_path = _model_path(path)
    spec = _read_spec(model_path)
    description = spec.description
    files = _Weights(path, model_path.parent)
    limits = Limits(weight_cache_bytes, value_limit_bytes)
    functions = guarded(lambda: _functions(spec, files, limits), str(path))
    metadata = description.metadata
    return Package(
        path=path,
        functions=functions,
        default_function=_default_function(description, functions),
        specification_version=spec.specificationVersion,
        metadata=dict(metadata.userDefined),
        short_description=metadata.shortDescription,
        author=metadata.author,
        license=metadata.license,
        version=metadata.versionString,
        weight_bytes=sum(len(f.bytes) for f in files.opened.values()),
        size_bytes=sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
    )


def _model_path(path: Path) -> Path:
    """Return the path of the root model that the manifest names."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise PackageError(f"{path}: {what}", hint="give the .mlpackage folder that was exported")
    manifest = path / "Manifest.json"
    try:
        content = json.loads(manifest.read_bytes())
    except OSError as e:
        raise PackageError(
            f"{manifest}: cannot be read: {e.strerror or e}",
            hint="give a complete .mlpackage folder; a compiled .mlmodelc cannot be opened",
        ) from e
    except (ValueError, RecursionError) as e:
        raise PackageError(f"{manifest}: not JSON: {e}", hint=DAMAGED) from e
    relative = _root_item(content, manifest)
    return inside(path, path / "Data" / relative, str(manifest))


def _root_item(content: Any, manifest: Path) -> str:
    try:
        item = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (KeyError, TypeError) as e:
        raise PackageError(f"{manifest}: it names no root model", hint=DAMAGED) from e
    if not isinstance(item, str):
        raise PackageError(f"{manifest}: the root model's path is {item!r}", hint=DAMAGED)
    return item


def inside(package: Path, target: Path, where: str) -> Path:
    """Return `target`, resolved; refuse one that is not a file inside `package`."""
    try:
        resolved = target.resolve()
        escapes = not resolved.is_relative_to(package.resolve())
        is_file = not escapes and resolved.is_file()
    except (OSError, ValueError, RuntimeError) as e:
        raise PackageError(f"{where}: {str(target)!r} is not a path", hint=DAMAGED) from e
    if escapes:
        raise PackageError(
            f"{where}: {target} is outside the package",
            hint="do not trust this package: it points at files it does not contain",
        )
    if not is_file:
        raise PackageError(
            f"{where}: {target} is missing", hint="copy the whole .mlpackage folder again"
        )
    return resolved


def _read_spec(model_path: Path) -> Proto:
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model_path.read_bytes())
    except (DecodeError, OSError) as e:
        raise PackageError(f"{model_path}: not a Core ML model: {e}", hint=DAMAGED) from e
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageError(
            f"{model_path}: its model is of type {kind or 'none'}, not an ML Program",
            hint='convert it with convert_to="mlprogram"; older kinds of model cannot be run here',
        )
    if not spec.mlProgram.functions:
        raise PackageError(f"{model_path}: a program without functions", hint=DAMAGED)
    return spec


class _Weights:
    """Opens the weight files that a program names, each once."""

    def __init__(self, package: Path, model_dir: Path) -> None:
        self.package = package
        self.model_dir = model_dir
        self.opened: dict[str, BlobFile] = {}

    def __call__(self, name: str, where: str) -> BlobFile:
        if name not in self.opened:
            if not name.startswith(MODEL_PATH):
                raise PackageError(f"{where}: its weights are in {name!r}", hint=DAMAGED)
            target = self.model_dir / name.removeprefix(MODEL_PATH)
            self.opened[name] = BlobFile(inside(self.package, target, where))
        return self.opened[name]


def _descriptions(spec: Proto, bodies: dict[str, Body]) -> dict[str, Any]:
    """Return what describes each function: a FunctionDescription, or the model's one."""
    several = {f.name: f for f in spec.description.functions}
    described = several or {"main": spec.description}
    for name in described.keys() ^ bodies.keys():
        where = "the description" if name in bodies else "the program"
        raise PackageError(f"function {name!r} is missing in {where}", hint=DAMAGED)
    return described


def _default_function(description: Proto, functions: dict[str, Function]) -> str:
    name = description.defaultFunctionName or ("main" if "main" in functions else "")
    name = name or next(iter(functions))
    if name not in functions:
        raise PackageError(f"the default function {name!r} is not there", hint=DAMAGED)
    return name


def _functions(spec: Proto, files: "_Weights", limits: Limits) -> dict[str, Function]:
    bodies = {
        name: parse_function(name, function, files)
        for name, function in spec.mlProgram.functions.items()
    }
    descriptions = _descriptions(spec, bodies)
    return {name: _function(bodies[name], d, limits) for name, d in descriptions.items()}


def _function(body: Body, description: Proto, limits: Limits) -> Function:
    where = f"function {body.name!r}"
    states = {n: t for n, t in body.inputs.items() if isinstance(t, StateType)}
    inputs = {n: t for n, t in body.inputs.items() if n not in states}
    outputs = _output_types(body)
    return Function(
        body,
        inputs=_specs(inputs, description.input, f"{where}: input"),
        outputs=_specs(outputs, description.output, f"{where}: output"),
        states=_specs(states, description.state, f"{where}: state"),
        limits=limits,
    )


def _output_types(body: Body) -> dict[str, ValueType]:
    types = dict(body.inputs)
    for operation in body.block.operations:
        types.update(operation.outputs)
    return {name: types[name] for name in body.block.outputs}


def _specs(types: Mapping[str, ValueType], features: Any, where: str) -> dict[str, Any]:
    described = {f.name: f for f in features}
    for name in types.keys() ^ described.keys():
        missing = "described" if name in types else "in the program"
        raise PackageError(f"{where} {name!r} is not {missing}", hint=DAMAGED)
    return {n: tensor_spec(t, described[n], f"{where} {n!r}") for n, t in types.items()}
