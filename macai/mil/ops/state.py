"""States: read, written, and updated in place where nobody can tell the difference."""

from typing import Any

import numpy as np

from macai.errors import PackageError
from macai.mil.call import FAILURES, check_names, failed, make_call
from macai.mil.finish import finisher
from macai.mil.frame import Frame, Step
from macai.mil.liveness import used_names
from macai.mil.ops.slicing import replace, slice_index, slice_update
from macai.mil.program import Block, Operation
from macai.mil.registry import OPS, Parameter, builds
from macai.mil.types import DAMAGED


@builds("read_state")
def read_state(scope: Any, operation: Operation, block: Block, index: int) -> Step:
    state = _state(scope, operation, "input", ())
    return _read_step(scope, operation, state)


@builds("write_state")
def write_state(scope: Any, operation: Operation, block: Block, index: int) -> Step:
    return _write_step(scope, operation, _state(scope, operation, "input", ("data",)), "data")


@builds("coreml_update_state")
def coreml_update_state(scope: Any, operation: Operation, block: Block, index: int) -> Step:
    """A write and a read: what it returns is what the state is then."""
    state = _state(scope, operation, "state", ("value",))
    write = _write_step(scope, operation, state, "value")
    read = _read_step(scope, operation, state)

    def step(frame: Frame) -> None:
        write(frame)
        read(frame)

    return step


@builds("slice_update", slice_update)
def build_slice_update(scope: Any, operation: Operation, block: Block, index: int) -> Step | None:
    """Write into the state itself where a copy of all of it would only be written back to it."""
    definition = OPS["slice_update"]
    plain: Step | None = scope.planner.call_step(operation, scope, definition)
    state = updated_state(block, index) if plain and len(operation.outputs) == 1 else None
    if state is None or plain is None:
        return plain
    call = make_call(operation, definition, scope.argument, scope.where(operation))
    (place,) = (scope.bound[name] for name in operation.outputs)

    def step(frame: Frame) -> None:
        given = call.arguments(frame)
        buffer = frame.states.buffer(state)
        if given["x"].base is not buffer or _is_seen(buffer, given["x"], frame):
            plain(frame)
            return
        update = given.pop("update").astype(np.float16).astype(np.float32)
        try:
            replace(buffer, slice_index(given.pop("x").shape, **{**MASKS, **given}), update)
        except FAILURES as e:
            raise failed(call.where, e) from e
        frame.states.mark_written(state)
        frame.values[place] = frame.states.read(state)

    return step


MASKS = dict.fromkeys(("stride", "begin_mask", "end_mask", "squeeze_mask"))


def _is_seen(buffer: np.ndarray, reader: np.ndarray, frame: Frame) -> bool:
    """Whether a value other than `reader` still shows what is in `buffer`."""
    alive = [value for value in frame.values if value is not None and value is not reader]
    return any(isinstance(v, np.ndarray) and np.may_share_memory(v, buffer) for v in alive)


def updated_state(block: Block, index: int) -> str | None:
    """Return the state that a slice_update reads, changes and gives back, with nothing in between.

    That is: read_state(s) → slice_update → write_state(s), none of their values used elsewhere, and
    s not touched before the write.
    """
    operation = block.operations[index]
    source, result = operation.inputs["x"][0], next(iter(operation.outputs))
    reads = [o for o in block.operations[:index] if source in o.outputs]
    if not reads or reads[0].type != "read_state" or {source, result} & set(block.outputs):
        return None
    (state,) = reads[0].inputs["input"]
    if not isinstance(state, str):
        return None
    write: Operation | None = None
    for later in block.operations[index + 1 :]:
        names = set(used_names(later))
        if source in names or (result in names and write is not None):
            return None
        if write is None and (result in names or state in names):
            if later.type != "write_state" or later.inputs != {
                "input": (state,),
                "data": (result,),
            }:
                return None
            write = later
    return state if write else None


def _state(scope: Any, operation: Operation, parameter: str, others: tuple[str, ...]) -> str:
    """Return the name of the state an operation is about."""
    where = scope.where(operation)
    required = {name: Parameter(True, None) for name in (parameter, *others)}
    check_names(operation, required, where)
    if any(len(arguments) != 1 for arguments in operation.inputs.values()):
        raise PackageError(f"{where}: not one argument for each input", hint=DAMAGED)
    bound = scope.argument(operation.inputs[parameter][0])
    name = getattr(bound, "name", None)
    if name is None:
        raise PackageError(
            f"{where}: {parameter} is not a state", hint="the package is damaged: export it again"
        )
    return str(name)


def _read_step(scope: Any, operation: Operation, state: str) -> Step:
    where = scope.where(operation)
    if len(operation.outputs) != 1:
        raise PackageError(
            f"{where}: {len(operation.outputs)} outputs declared, it has 1", hint=DAMAGED
        )
    ((name, type_),) = operation.outputs.items()
    finish = finisher(type_, rounds=False, where=f"{where}: {name!r}")
    place = scope.place(name)

    def step(frame: Frame) -> None:
        frame.values[place] = finish(frame.states.read(state), False)[0]

    return step


def _write_step(scope: Any, operation: Operation, state: str, parameter: str) -> Step:
    """Return the step that sets a state, of the same shape as before."""
    where = scope.where(operation)
    fetch = scope.fetch(operation.inputs[parameter][0])

    def step(frame: Frame) -> None:
        value = np.asarray(fetch(frame))
        buffer = frame.states.buffer(state)
        if value.shape != buffer.shape or value.dtype.kind != "f":
            raise PackageError(
                f"{where}: writes {value.dtype} {list(value.shape)} to the state {state!r} "
                f"of shape {list(buffer.shape)}",
                hint="a state keeps its shape: write all of it",
            )
        if value.base is buffer and value.ctypes.data == buffer.ctypes.data:
            frame.states.mark_written(state)
        else:
            frame.states.write(state, value)

    return step
