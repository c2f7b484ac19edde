"""Prepare a function for running: every lookup, check and conversion that no input changes.

A plan is a list of steps over numbered places. Operations on constants alone are constants too. A
place is emptied after the last step that reads it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from macai.errors import PackageError, UnsupportedMilOpError
from macai.mil.call import Call, all_finite, make_call
from macai.mil.finish import finisher
from macai.mil.frame import Frame, Overflow, Step
from macai.mil.liveness import check_live_bytes, last_uses
from macai.mil.ops import OPS
from macai.mil.program import Argument, Block, Body, Operation
from macai.mil.registry import OpDef
from macai.mil.types import DAMAGED, StateType, TensorType
from macai.mil.values import Value
from macai.mil.weights import Constant, WeightCache


@dataclass(frozen=True, slots=True)
class StateName:
    """What a name of a state is bound to."""

    name: str


Bound = int | Constant | StateName
"""What a name stands for: a place of the frame, a constant, a state."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A function ready to run.

    Attributes:
        places: How many values a frame has.
        inputs: Place by input name.
        outputs: What each output is.
        overflows: Of constant operations; filled when they are first computed.
    """

    steps: list[Step]
    places: int
    inputs: dict[str, int]
    outputs: dict[str, Bound]
    overflows: list[Overflow]


def unsupported(block: Block) -> dict[str, int]:
    """Return how often each operation without an implementation is in a block."""
    return dict(Counter(o.type for o in block.walk() if o.type != "const" and o.type not in OPS))


def make_plan(body: Body, *, rounds: bool, cache: WeightCache, value_limit_bytes: int) -> Plan:
    """Prepare `body`; `rounds` is whether values declared fp16 are rounded to it.

    Raises:
        UnsupportedMilOpError: it has operations that cannot be run; all of them are named.
        PackageError: inputs that are missing or unknown, or values too large to hold.
    """
    missing = unsupported(body.block)
    if missing:
        names = ", ".join(f"{name} ({n}×)" for name, n in sorted(missing.items()))
        raise UnsupportedMilOpError(
            f"function {body.name!r}: MIL operations that cannot be run: {names}",
            hint="convert the model without them, or compare it on a Mac",
        )
    check_live_bytes(body, value_limit_bytes)
    return _Planner(body, rounds, cache).plan()


@dataclass(slots=True)
class Scope:
    """What the names of a block stand for, and how to write its steps."""

    planner: "_Planner"
    bound: dict[str, Bound] = field(default_factory=dict)

    def place(self, name: str) -> int:
        """Give a value a place of the frame."""
        place = self.planner.new_place()
        self.bound[name] = place
        return place

    def argument(self, argument: Argument) -> Bound:
        """Return what an argument stands for."""
        if isinstance(argument, str):
            return self.bound[argument]
        return self.planner.constant(argument)

    def fetch(self, argument: Argument) -> Callable[[Frame], Any]:
        """Return how to get an argument in a run."""
        bound = self.argument(argument)
        if isinstance(bound, StateName):
            raise PackageError(
                f"function {self.planner.body.name!r}: {bound.name!r} is a state", hint=DAMAGED
            )
        if isinstance(bound, Constant):
            constant = bound
            return lambda _: constant.get()
        place = bound
        return lambda frame: frame.values[place]

    def inner(self) -> "Scope":
        """Return the scope of a nested block."""
        return Scope(self.planner, dict(self.bound))

    def where(self, operation: Operation) -> str:
        """Name an operation in a message."""
        return f"function {self.planner.body.name!r}: {operation.type} {operation.name!r}"

    def block(self, block: Block) -> tuple[list[int], list[Step], list[Bound]]:
        """Plan a nested block: the places of its inputs, its steps, what its outputs are."""
        scope = self.inner()
        places = [scope.place(name) for name in block.inputs]
        steps = self.planner.block_steps(block, scope)
        return places, steps, [scope.output(name) for name in block.outputs]

    def output(self, name: str) -> Bound:
        """Return what a block's output is."""
        if isinstance(self.bound[name], StateName):
            raise PackageError(
                f"function {self.planner.body.name!r}: it returns the state {name!r}", hint=DAMAGED
            )
        return self.bound[name]


class _Planner:
    def __init__(self, body: Body, rounds: bool, cache: WeightCache) -> None:
        self.body = body
        self.rounds = rounds
        self.cache = cache
        self.places = 0
        self.overflows: list[Overflow] = []

    def new_place(self) -> int:
        self.places += 1
        return self.places - 1

    def constant(self, value: Value) -> Constant:
        address = value.stored_at
        place = None if address is None else (address, str(value.type))
        return Constant(value.read, self.cache, place=place, forget=value.forget)

    def plan(self) -> Plan:
        scope = Scope(self)
        inputs = {}
        for name, type_ in self.body.inputs.items():
            if isinstance(type_, StateType):
                scope.bound[name] = StateName(name)
            else:
                inputs[name] = scope.place(name)
        steps = self.block_steps(self.body.block, scope)
        outputs = {name: scope.output(name) for name in self.body.block.outputs}
        return Plan(steps, self.places, inputs, outputs, self.overflows)

    def block_steps(self, block: Block, scope: Scope) -> list[Step]:
        """Return the steps of a block, binding the names it defines."""
        own = {*block.inputs, *(self.body.inputs if block is self.body.block else ())}
        dead = last_uses(block, own)
        steps: list[Step] = []
        for index, operation in enumerate(block.operations):
            step = self._step(operation, scope, block, index)
            places = [scope.bound[name] for name in dead[index]]
            release = [place for place in places if isinstance(place, int)]
            if step is not None:
                steps.append(step)
            if release:
                steps.append(_releaser(release))
        return steps

    def _step(self, operation: Operation, scope: Scope, block: Block, index: int) -> Step | None:
        """Bind an operation's outputs; return None where nothing is left to do in a run."""
        if operation.type == "const":
            self._bind_const(operation, scope)
            return None
        definition = OPS[operation.type]
        if definition.build is not None:
            step: Step | None = definition.build(scope, operation, block, index)
            return step
        return self.call_step(operation, scope, definition)

    def call_step(self, operation: Operation, scope: Scope, definition: OpDef) -> Step | None:
        """Return the step of an operation that is a function of its inputs."""
        call = make_call(operation, definition, scope.argument, scope.where(operation))
        if call.is_constant:
            self._bind_folded(operation, definition, call, scope)
            return None
        return self.output_step(operation, scope, call)

    def _bind_const(self, operation: Operation, scope: Scope) -> None:
        values = operation.inputs.get("val", ())
        if len(operation.outputs) != 1 or len(values) != 1 or not isinstance(values[0], Value):
            raise PackageError(
                f"{scope.where(operation)}: a constant without one value", hint=DAMAGED
            )
        (name, type_) = next(iter(operation.outputs.items()))
        if type_ != values[0].type:
            raise PackageError(
                f"{scope.where(operation)}: declared {type_}, its value {values[0].type}",
                hint="the package is damaged: export it again",
            )
        scope.bound[name] = self.constant(values[0])

    def _bind_folded(
        self, operation: Operation, definition: OpDef, call: Call, scope: Scope
    ) -> None:
        """Bind the outputs of an operation on constants; they are computed when first needed."""
        rounds = self.rounds or definition.is_constexpr
        compute = self._results(operation, scope, call, rounds=rounds, overflows=None)

        def reader(index: int) -> Callable[[], Any]:
            return lambda: compute(None)[index]

        for index, name in enumerate(operation.outputs):
            scope.bound[name] = Constant(reader(index), self.cache, is_computed=True)

    def output_step(self, operation: Operation, scope: Scope, call: Call) -> Step:
        """Return the step that calls an operation and keeps its results."""
        compute = self._results(
            operation, scope, call, rounds=self.rounds, overflows=self.overflows
        )
        places = [scope.place(name) for name in operation.outputs]
        if len(places) == 1:
            (place,) = places

            def one(frame: Frame) -> None:
                frame.values[place] = compute(frame)[0]

            return one

        def several(frame: Frame) -> None:
            for place, value in zip(places, compute(frame), strict=True):
                frame.values[place] = value

        return several

    def _results(
        self,
        operation: Operation,
        scope: Scope,
        call: Call,
        *,
        rounds: bool,
        overflows: list[Overflow] | None,
    ) -> Callable[[Frame | None], list[Any]]:
        where = scope.where(operation)
        names = list(operation.outputs)
        finish = [
            finisher(type_, rounds=rounds, where=f"{where}: {name!r}")
            for name, type_ in operation.outputs.items()
        ]
        constant_overflows = self.overflows
        noted = _noted(operation)

        def compute(frame: Frame | None) -> list[Any]:
            given = call.arguments(frame)
            results = call.results(given)
            if len(results) != len(finish):
                raise PackageError(
                    f"{where}: {len(names)} outputs declared, it has {len(results)}", hint=DAMAGED
                )
            finished = []
            for name, result, end in zip(names, results, finish, strict=True):
                value, not_finite = end(result, _is_new(result, given))
                if not_finite and all_finite(given):
                    found = constant_overflows if frame is None else frame.overflows
                    found.append(Overflow(operation.name, operation.type, name, not_finite))
                if frame is not None and frame.peaks is not None and name in noted:
                    frame.note(name, value)
                if frame is not None and frame.kept is not None and name in frame.kept:
                    frame.kept[name] = np.array(value)
                finished.append(value)
            return finished

        return compute


def _is_new(result: Any, given: Mapping[str, Any]) -> bool:
    """Return whether nobody else has an operation's result, as far as arrays tell."""
    if not isinstance(result, np.ndarray) or result.base is not None:
        return False
    for value in given.values():
        if any(one is result for one in (value if isinstance(value, tuple | list) else (value,))):
            return False
    return result.flags.c_contiguous


def _noted(operation: Operation) -> frozenset[str]:
    """Return which outputs' magnitudes can be asked for.

    Not what has all of a state in it: that is large, and each part was a value when it was written.
    """
    if operation.type in ("read_state", "slice_update"):
        return frozenset()
    return frozenset(
        name
        for name, type_ in operation.outputs.items()
        if isinstance(type_, TensorType) and type_.dtype.name == "fp16"
    )


def _releaser(places: Iterable[int]) -> Step:
    places = tuple(places)

    def release(frame: Frame) -> None:
        values = frame.values
        for place in places:
            values[place] = None

    return release
