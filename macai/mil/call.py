"""How an operation's function is called: which arguments are fixed, which come from the frame."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from macai.errors import PackageError
from macai.mil.frame import Frame
from macai.mil.program import Argument, Operation
from macai.mil.registry import OpDef, Parameter
from macai.mil.types import DAMAGED
from macai.mil.weights import SMALL_BYTES, Constant

FAILURES = (ValueError, TypeError, ArithmeticError, LookupError, MemoryError, AttributeError)
"""What numpy and the operations raise on inputs that make no sense."""

Fetch = Callable[[Frame | None], Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call with everything looked up.

    Attributes:
        is_constant: Whether no argument depends on a run; the frame may be None then.
        fixed: Arguments that are the same in every run.
        dynamic: How to get the others.
    """

    function: Callable[..., Any]
    where: str
    is_constant: bool
    fixed: dict[str, Any]
    dynamic: tuple[tuple[str, Fetch], ...]

    def arguments(self, frame: Frame | None) -> dict[str, Any]:
        """Return what the function is called with."""
        given = dict(self.fixed)
        try:
            for name, fetch in self.dynamic:
                given[name] = fetch(frame)
        except FAILURES as e:
            raise failed(self.where, e) from e
        return given

    def results(self, given: dict[str, Any]) -> tuple[Any, ...]:
        """Call the function."""
        try:
            results = self.function(**given)
        except FAILURES as e:
            raise failed(self.where, e) from e
        return results if isinstance(results, tuple) else (results,)


def all_finite(given: dict[str, Any]) -> bool:
    """Whether every float among some arguments is finite."""
    for value in given.values():
        for array in value if isinstance(value, tuple | list) else (value,):
            is_float = (
                isinstance(array, float) or getattr(array, "dtype", np.dtype(bool)).kind == "f"
            )
            if is_float and not np.isfinite(array).all():
                return False
    return True


def make_call(
    operation: Operation,
    definition: OpDef,
    bound: Callable[[Argument], Any],
    where: str,
) -> Call:
    """Prepare the call of an operation; `bound` says what each argument stands for."""
    check_names(operation, definition.parameters, where)
    fixed: dict[str, Any] = {}
    dynamic: list[tuple[str, Fetch]] = []
    is_constant = True
    for name, arguments in operation.inputs.items():
        parameter = definition.parameters[name]
        sources = [bound(argument) for argument in arguments]
        if not parameter.many and len(sources) != 1:
            raise PackageError(f"{where}: {name} has {len(sources)} arguments, not 1", hint=DAMAGED)
        fetch, is_fixed, is_known = _fetch(
            parameter, sources, where, name, keeps=not definition.is_constexpr
        )
        is_constant = is_constant and is_known
        if is_fixed:
            fixed[name] = guarded(partial(fetch, None), where)
        else:
            dynamic.append((name, fetch))
    return Call(definition.function, where, is_constant, fixed, tuple(dynamic))


def check_names(operation: Operation, parameters: dict[str, Parameter], where: str) -> None:
    """Refuse an operation whose inputs are not those its function takes."""
    unknown = operation.inputs.keys() - parameters.keys()
    missing = {n for n, p in parameters.items() if p.required} - operation.inputs.keys()
    if unknown or missing:
        parts = [f"{what} {', '.join(sorted(names))}" for what, names in
                 (("unknown", unknown), ("missing", missing)) if names]  # fmt: skip
        raise PackageError(
            f"{where}: inputs {' and '.join(parts)}",
            hint="the package is damaged, or of an opset that cannot be run",
        )


def failed(where: str, error: Exception) -> PackageError:
    """Say that an operation could not be computed."""
    return PackageError(
        f"{where}: {error or type(error).__name__}",
        hint="the program does not fit the shapes or values it was given",
    )


def guarded(read: Callable[[], Any], where: str) -> Any:
    """Return what `read` returns, its failures as a PackageError."""
    try:
        return read()
    except FAILURES as e:
        raise failed(where, e) from e


def _fetch(
    parameter: Parameter, sources: list[Any], where: str, name: str, *, keeps: bool
) -> tuple[Fetch, bool, bool]:
    """Return how to get an argument, whether once and for all, and whether it is constant.

    `keeps` is whether a weight that is computed is kept: not if it only becomes another weight.
    """
    for source in sources:
        if not isinstance(source, int | Constant):
            raise PackageError(
                f"{where}: {name} is a state: only read_state may use it", hint=DAMAGED
            )
    fetches = [_source(parameter, source, keeps) for source in sources]
    is_known = all(isinstance(source, Constant) for source in sources)
    if parameter.many:
        return (lambda frame: tuple(fetch(frame) for fetch in fetches)), False, is_known
    (fetch,), convert = fetches, parameter.convert
    if convert is None or convert is np.asarray:
        return fetch, False, is_known
    return (lambda frame: convert(fetch(frame))), is_known and _is_small(sources[0]), is_known


def _source(parameter: Parameter, source: int | Constant, keeps: bool) -> Fetch:
    if isinstance(source, Constant):
        constant = source
        is_raw = parameter.raw and not (keeps and constant.is_computed)
        return (lambda _: constant.raw()) if is_raw else (lambda _: constant.get())
    place = source
    return lambda frame: frame.values[place]  # type: ignore[union-attr]


def _is_small(source: Any) -> bool:
    return isinstance(source, Constant) and getattr(source.raw(), "nbytes", 0) <= SMALL_BYTES
