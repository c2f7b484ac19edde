"""What a package says of its functions and of itself, for those who do not read its program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import coremltools as ct
from coremltools.converters.mil.backend.mil.helper import cast_to_framework_io_dtype
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.types.symbolic import any_symbolic
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from macai import __version__
from macai.coreml.flexible import Flexible, Size
from macai.coreml.ops.table import Var

Message = Any


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


def describe(
    functions: Mapping[str, Any],
    default: str,
    metadata: Metadata,
    flexible: Mapping[str, Flexible],
) -> Message:
    """Return the Model.proto ModelDescription of coremltools' Functions by name.

    `flexible` has the sizes that inputs of a function may have; the least are the default. A lone
    function called "main" is described as a model without functions: so it may have a target
    before iOS 18.
    """
    made = Model_pb2.ModelDescription()
    if list(functions) == ["main"]:
        _features(made, functions["main"], metadata, flexible.get("main", {}))
    else:
        made.defaultFunctionName = default
        for name, function in functions.items():
            _features(made.functions.add(name=name), function, metadata, flexible.get(name, {}))
    own = made.metadata
    own.author, own.license = metadata.author, metadata.license
    own.shortDescription, own.versionString = metadata.description, metadata.version
    for key, value in metadata.user.items():
        own.userDefined[key] = value
    own.userDefined["com.github.apple.coremltools.version"] = ct.__version__
    own.userDefined["macai.version"] = __version__
    return made


def _features(made: Message, function: Any, metadata: Metadata, flexible: Flexible) -> None:
    for name, var in function.inputs.items():
        if types.is_state(var.sym_type):
            state = FeatureTypes_pb2.StateFeatureType(arrayType=_array(var, is_output=False))
            made.state.add(name=name, type=FeatureTypes_pb2.FeatureType(stateType=state))
        else:
            text = metadata.inputs.get(name, "")
            feature = made.input.add(
                name=name, shortDescription=text, type=_plain(var, is_output=False)
            )
            if axes := flexible.get(name):
                _set_ranges(feature.type.multiArrayType, var.shape, axes)
    for var in function.outputs:
        text = metadata.outputs.get(var.name, "")
        made.output.add(name=var.name, shortDescription=text, type=_plain(var, is_output=True))


def _plain(var: Var, *, is_output: bool) -> Message:
    return FeatureTypes_pb2.FeatureType(multiArrayType=_array(var, is_output=is_output))


def _array(var: Var, *, is_output: bool) -> Message:
    shape = () if any_symbolic(var.shape) else var.shape  # only a run knows
    kind = cast_to_framework_io_dtype(var, is_output)
    return FeatureTypes_pb2.ArrayFeatureType(shape=shape, dataType=kind)


def _set_ranges(array: Message, shape: Sequence[Any], axes: Mapping[int, Size]) -> None:
    """Say which sizes an input may have, in place; the least of each are its default."""
    ranges = [axes.get(n) or Size(name="", least=d, most=d) for n, d in enumerate(shape)]
    array.shape[:] = [size.least for size in ranges]
    for size in ranges:
        array.shapeRange.sizeRanges.add(lowerBound=size.least, upperBound=size.most)
