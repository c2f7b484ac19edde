"""The table of operations: a function each, its signature read once.

A parameter's annotation says what an operation is handed: `Array` (floats are float32), `Raw` (as
stored), `Arrays` (a parameter with several arguments), or a Python value made of an array: `int`,
`float`, `bool`, `str`, `Ints`, `Bools`, `Floats`. One without a default is required.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np

Array = np.ndarray
Raw = Annotated[np.ndarray, "raw"]
Arrays = tuple[np.ndarray, ...]
Ints = tuple[int, ...]
Bools = tuple[bool, ...]
Floats = tuple[float, ...]

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """How one input of an operation is handed to its function."""

    required: bool
    convert: Convert | None
    raw: bool = False
    many: bool = False


@dataclass(frozen=True, slots=True)
class OpDef:
    """An operation of the table.

    Attributes:
        function: Takes the operation's inputs by name, returns an array or a tuple of them.
        is_constexpr: Its outputs are weights: rounded to their declared type at any precision.
        build: For an operation that is more than a function of its inputs, what makes its step.
    """

    function: Callable[..., Any]
    parameters: dict[str, Parameter]
    is_constexpr: bool = False
    build: Callable[..., Any] | None = None


OPS: dict[str, OpDef] = {}
"""By MIL name; filled by importing `macai.mil.ops`."""


def op(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the operation of these names."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            parameters = _parameters(function)
            _add(name, OpDef(function, parameters, is_constexpr=name.startswith("constexpr_")))
        return function

    return register


def builds(
    name: str, function: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what makes the step of an operation with blocks or states.

    It is called with the scope, the operation, its block and its index there. `function` is what
    the operation computes where it is a function of its inputs.
    """

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        parameters = _parameters(function) if function else {}
        _add(name, OpDef(function or build, parameters, build=build))
        return build

    return register


def _add(name: str, definition: OpDef) -> None:
    if name in OPS:
        raise ValueError(f"operation {name!r} is registered twice")
    OPS[name] = definition


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    hints = get_type_hints(function, include_extras=True)
    return {
        name: _parameter(hints[name], parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _parameter(hint: Any, required: bool) -> Parameter:
    if type(None) in get_args(hint):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) is Annotated:
        return Parameter(required, None, raw=True)
    if hint == Arrays:
        return Parameter(required, None, many=True)
    return Parameter(required, CONVERTERS[hint])


def _scalar(kind: Callable[[Any], Any]) -> Convert:
    return lambda value: kind(np.asarray(value).reshape(()).item())


def _tuple(kind: Callable[[Any], Any]) -> Convert:
    return lambda value: tuple(kind(v) for v in np.asarray(value).reshape(-1).tolist())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


CONVERTERS: dict[Any, Convert | None] = {
    np.ndarray: np.asarray,
    list: None,
    Any: None,
    int: _scalar(int),
    float: _scalar(float),
    bool: _scalar(bool),
    str: _text,
    Ints: _tuple(int),
    Bools: _tuple(bool),
    Floats: _tuple(float),
}
