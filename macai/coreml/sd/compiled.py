"""metadata.json of a compiled package, by which apps tell what a model is.

coremlcompiler writes one itself; where another compiler does not, this takes its place. The keys
are its own. Of the histogram apps read "Ios16.einsum" alone (MochiDiffusion, Guernika): the other
operations are spelled likewise, which may differ from the compiler's.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from macai.mil import open_package
from macai.mil.features import TensorSpec
from macai.mil.function import Function
from macai.mil.types import TensorType

_TYPES = {"fp16": "Float16", "fp32": "Float32", "int32": "Int32"}
_SYSTEMS = {
    7: {"macOS": "13.0", "iOS": "16.0", "tvOS": "16.0", "watchOS": "9.0"},
    8: {"macOS": "14.0", "iOS": "17.0", "tvOS": "17.0", "watchOS": "10.0"},
    9: {"macOS": "15.0", "iOS": "18.0", "tvOS": "18.0", "watchOS": "11.0"},
}


def metadata_json(path: Path) -> list[dict[str, Any]]:
    """Return what metadata.json of a package says, of its default function.

    Raises:
        PackageError: it cannot be opened.
    """
    package = open_package(path)
    function = package.functions[package.default_function]
    stored = sorted(_weight_types(function))
    return [
        {
            "metadataOutputVersion": "3.0",
            "shortDescription": package.short_description,
            "author": package.author,
            "license": package.license,
            "version": package.version,
            "specificationVersion": package.specification_version,
            "storagePrecision": _mixed(stored),
            "computePrecision": _mixed(sorted({*stored, "Float16", "Int32"})),
            "modelType": {"name": "MLModelType_mlProgram"},
            "generatedClassName": path.stem,
            "method": "predict",
            "isUpdatable": "0",
            "modelParameters": [],
            "availability": _SYSTEMS.get(package.specification_version, {}),
            "userDefinedMetadata": package.metadata,
            "inputSchema": [_feature(n, s) for n, s in function.inputs.items()],
            "outputSchema": [_feature(n, s) for n, s in function.outputs.items()],
            "mlProgramOperationTypeHistogram": histogram(function),
        }
    ]


def histogram(function: Function) -> dict[str, int]:
    """Return how often each operation is in a function, by the opset's name and its own."""
    number = int(re.sub(r"\D", "", function.body.opset) or 0)
    opset = f"Ios{number + 10}"  # CoreML6 came with iOS 16
    kinds = Counter(op.type for op in function.operations if op.type != "const")
    return {f"{opset}.{_camel(kind)}": count for kind, count in sorted(kinds.items())}


def _weight_types(function: Function) -> set[str]:
    return {
        _TYPES[type_.dtype.name]
        for operation in function.operations
        for type_ in operation.outputs.values()
        if isinstance(type_, TensorType) and type_.dtype.name in ("fp16", "fp32")
        if operation.type == "const" and type_.elements > 1
    }


def _mixed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"Mixed ({', '.join(names)})"


def _camel(kind: str) -> str:
    first, *rest = kind.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _feature(name: str, spec: TensorSpec) -> dict[str, str]:
    shape = [str(size) for size in spec.shape or ()]
    kind = _TYPES[spec.dtype]
    return {
        "name": name,
        "type": "MultiArray",
        "dataType": kind,
        "shape": f"[{', '.join(shape)}]",
        "formattedType": f"MultiArray ({kind} {' × '.join(shape)})",
        "hasShapeFlexibility": "0",
        "isOptional": "0",
        "shortDescription": "",
    }
