"""Branches, loops and lists."""

from collections.abc import Callable
from typing import Any

import numpy as np

from macai.errors import PackageError
from macai.mil.call import Fetch
from macai.mil.finish import finisher
from macai.mil.frame import Frame, Step
from macai.mil.ops.size import allowed
from macai.mil.program import Argument, Block, Operation
from macai.mil.registry import Array, Arrays, Ints, builds, op
from macai.mil.types import DAMAGED
from macai.mil.weights import Constant

MAX_ITERATIONS = 1 << 16
MAX_LIST_LENGTH = 1 << 16

Branch = Callable[[Frame], list[Any]]


def _branch(scope: Any, block: Block) -> tuple[list[int], Branch]:
    """Return the places of a block's inputs, and what runs it and returns its outputs."""
    places, steps, outputs = scope.block(block)

    def run(frame: Frame) -> list[Any]:
        for step in steps:
            step(frame)
        return [o.get() if isinstance(o, Constant) else frame.values[o] for o in outputs]

    return places, run


def _keeper(scope: Any, operation: Operation) -> Callable[[Frame, list[Any]], None]:
    """Return what makes a block's outputs those of the operation."""
    where = scope.where(operation)
    ends = [
        (scope.place(name), finisher(type_, rounds=False, where=f"{where}: {name!r}"))
        for name, type_ in operation.outputs.items()
    ]

    def keep(frame: Frame, values: list[Any]) -> None:
        for (place, finish), value in zip(ends, values, strict=True):
            frame.values[place] = finish(value, False)[0]

    return keep


def _expect(
    scope: Any, operation: Operation, inputs: set[str], blocks: list[tuple[int, int]]
) -> None:
    """Refuse an operation without these inputs, and blocks with these (inputs, outputs)."""
    found = [(len(b.inputs), len(b.outputs)) for b in operation.blocks]
    if set(operation.inputs) != inputs or found != blocks:
        raise PackageError(
            f"{scope.where(operation)}: inputs {sorted(operation.inputs)}, blocks {found}; "
            f"needs {sorted(inputs)}, {blocks}",
            hint="the package is damaged: export it again",
        )


def _truth(value: Any, scope_where: str) -> bool:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "bif":
        raise PackageError(f"{scope_where}: a condition of shape {list(array.shape)}", hint=DAMAGED)
    return bool(array.reshape(()))


@builds("cond")
def cond(scope: Any, operation: Operation, block: Block, index: int) -> Step:
    n = len(operation.outputs)
    _expect(scope, operation, {"pred"}, [(0, n), (0, n)])
    where = scope.where(operation)
    predicate = _single(scope, operation.inputs["pred"], where)
    (_, if_true), (_, if_false) = (_branch(scope, b) for b in operation.blocks)
    keep = _keeper(scope, operation)

    def step(frame: Frame) -> None:
        keep(frame, (if_true if _truth(predicate(frame), where) else if_false)(frame))

    return step


@builds("while_loop")
def while_loop(scope: Any, operation: Operation, block: Block, index: int) -> Step:
    n = len(operation.outputs)
    _expect(scope, operation, {"loop_vars"}, [(n, 1), (n, n)])
    where = scope.where(operation)
    first = [scope.fetch(argument) for argument in operation.inputs["loop_vars"]]
    if len(first) != n:
        raise PackageError(f"{where}: {len(first)} loop variables, {n} outputs", hint=DAMAGED)
    (condition_places, condition), (body_places, body) = (
        _branch(scope, b) for b in operation.blocks
    )
    keep = _keeper(scope, operation)

    def step(frame: Frame) -> None:
        values = [fetch(frame) for fetch in first]
        for _ in range(MAX_ITERATIONS):
            _set(frame, condition_places, values)
            if not _truth(condition(frame)[0], where):
                keep(frame, values)
                return
            _set(frame, body_places, values)
            values = body(frame)
        raise PackageError(
            f"{where}: still going on after {MAX_ITERATIONS} iterations", hint=DAMAGED
        )

    return step


def _set(frame: Frame, places: list[int], values: list[Any]) -> None:
    for place, value in zip(places, values, strict=True):
        frame.values[place] = value


def _single(scope: Any, arguments: tuple[Argument, ...], where: str) -> Fetch:
    if len(arguments) != 1:
        raise PackageError(f"{where}: {len(arguments)} conditions", hint=DAMAGED)
    fetch: Fetch = scope.fetch(arguments[0])
    return fetch


@op("make_list")
def make_list(
    elem_shape: Arrays, init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32"
) -> list[Any]:
    """A list whose elements are None until they are written: their shape may not be known yet."""
    if not 0 <= init_length <= MAX_LIST_LENGTH:
        raise ValueError(f"a list of {init_length} elements")
    return [None] * init_length


@op("list_length")
def list_length(ls: list) -> Array:  # type: ignore[type-arg]
    return np.array(len(ls), np.int32)


@op("list_write")
def list_write(ls: list, index: int, value: Array) -> list[Any]:  # type: ignore[type-arg]
    if not 0 <= index <= MAX_LIST_LENGTH:
        raise IndexError(f"element {index} of a list of {len(ls)}")
    written = ls + [None] * (index + 1 - len(ls))
    written[index] = value
    return written


@op("list_read")
def list_read(ls: list, index: int) -> Array:  # type: ignore[type-arg]
    return _element(ls, index)


@op("list_gather")
def list_gather(ls: list, indices: Ints) -> Array:  # type: ignore[type-arg]
    elements = [_element(ls, index) for index in indices]
    allowed((sum(e.size for e in elements),))
    return np.stack(elements)


@op("list_scatter")
def list_scatter(ls: list, indices: Ints, value: Array) -> list[Any]:  # type: ignore[type-arg]
    for index, element in zip(indices, value, strict=True):
        ls = list_write(ls, index, element)
    return ls


def _element(ls: list[Any], index: int) -> Array:
    if not -len(ls) <= index < len(ls) or ls[index] is None:
        raise IndexError(f"element {index} of a list of {len(ls)} was never written")
    return np.asarray(ls[index])
