"""A function as rules look at it: who makes a value, who uses it, what is constant."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from macai.mil.function import Function
from macai.mil.liveness import used_names
from macai.mil.program import Argument, Block, Operation
from macai.mil.types import StateType, TensorType, ValueType
from macai.mil.values import Value

FLOATS = ("fp16", "fp32", "fp64")
SMALL = 4096
"""Elements of a constant that a rule may read just to compare it with a number."""


class View:
    """A function, indexed.

    Attributes:
        operations: All but constants, in order, those of nested blocks after their operation.
        types: Of every value, by name.
        makers: The operation that makes a value, by name; constants included.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.name = function.name
        self.types: dict[str, ValueType] = dict(function.body.inputs)
        self.makers: dict[str, Operation] = {}
        self.operations: list[Operation] = []
        self._add(function.body.block)

    def _add(self, block: Block) -> None:
        self.types.update(block.inputs)
        for operation in block.operations:
            self.types.update(operation.outputs)
            self.makers.update(dict.fromkeys(operation.outputs, operation))
            if operation.type != "const":
                self.operations.append(operation)
            for inner in operation.blocks:
                self._add(inner)

    @cached_property
    def users(self) -> dict[str, list[Operation]]:
        """The operations that read a value, by name."""
        users: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            for name in dict.fromkeys(used_names(operation)):
                users[name].append(operation)
        return users

    def of(self, *types: str) -> Iterator[Operation]:
        """Yield the operations of these types."""
        return (o for o in self.operations if o.type in types)

    def argument(self, operation: Operation, parameter: str) -> Argument | None:
        """Return what a parameter is bound to, the first if to several."""
        return next(iter(operation.inputs.get(parameter, ())), None)

    def tensor(self, argument: Argument | None) -> TensorType | None:
        """Return the type of an argument that is a tensor."""
        type_ = argument.type if isinstance(argument, Value) else self.types.get(argument or "")
        return type_ if isinstance(type_, TensorType) else None

    def dtype(self, argument: Argument | None) -> str:
        """Return the name of an argument's data type, "" if it is no tensor."""
        tensor = self.tensor(argument)
        return tensor.dtype.name if tensor else ""

    def shape(self, argument: Argument | None) -> tuple[int | None, ...]:
        """Return an argument's shape, () where not even its rank is known."""
        tensor = self.tensor(argument)
        return (tensor.shape if tensor else None) or ()

    def result(self, operation: Operation) -> str:
        """Return the name of an operation's first output, "" if it has none."""
        return next(iter(operation.outputs), "")

    def is_half(self, operation: Operation) -> bool:
        """Whether an operation computes in float16."""
        return self.dtype(self.result(operation)) == "fp16"

    def maker(self, argument: Argument | None) -> Operation | None:
        """Return the operation an argument comes from, if it is none of the inputs."""
        return self.makers.get(argument) if isinstance(argument, str) else None

    def made_by(self, argument: Argument | None, *types: str) -> Operation | None:
        """Return the operation an argument comes from, if it is of one of these types."""
        maker = self.maker(argument)
        return maker if maker and maker.type in types else None

    def value(self, argument: Argument | None) -> Value | None:
        """Return an argument that is a constant."""
        if isinstance(argument, Value):
            return argument
        maker = self.made_by(argument, "const")
        given = self.argument(maker, "val") if maker else None
        return given if isinstance(given, Value) else None

    def number(self, argument: Argument | None) -> float | None:
        """Return what a small constant is everywhere; None if it has several values, or is not."""
        array = self.array(argument)
        if array is None or not array.size or array.dtype.kind not in "fiub":
            return None
        first = array.reshape(-1)[0]
        return float(first) if bool(np.all(array == first)) else None

    def array(self, argument: Argument | None) -> np.ndarray | None:
        """Return a small constant."""
        value = self.value(argument)
        if value is None or not isinstance(value.type, TensorType) or value.type.elements > SMALL:
            return None
        read: Any = value.read()
        return read if isinstance(read, np.ndarray) else None

    def ancestors(self, argument: Argument | None, depth: int) -> Iterator[Operation]:
        """Yield the operations an argument comes from, at most `depth` steps back."""
        maker = self.maker(argument)
        if maker is None or depth == 0 or maker.type == "const":
            return
        yield maker
        for names in maker.input_names.values():
            for name in names:
                yield from self.ancestors(name, depth - 1)

    def descendants(self, operation: Operation, depth: int) -> Iterator[Operation]:
        """Yield the operations that use what an operation makes, at most `depth` steps on."""
        if depth == 0:
            return
        for name in operation.outputs:
            for user in self.users.get(name, ()):
                yield user
                yield from self.descendants(user, depth - 1)

    @cached_property
    def float_operations(self) -> dict[str, list[Operation]]:
        """The operations that compute floats, by the type they compute in."""
        found: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            dtype = self.dtype(self.result(operation))
            moved = operation.type in ("cast", "read_state", "identity")
            if dtype in FLOATS and not moved and not operation.type.startswith("constexpr_"):
                found[dtype].append(operation)
        return found

    @property
    def mostly_half(self) -> bool:
        """Whether a function is meant to compute in float16."""
        return len(self.float_operations["fp16"]) > len(self.float_operations["fp32"])

    @property
    def states(self) -> list[str]:
        """The names of its states."""
        return [n for n, t in self.function.body.inputs.items() if isinstance(t, StateType)]

    def constants(self) -> Iterator[tuple[Operation, str, Value]]:
        """Yield every constant: the operation and the parameter it is in, `const` and `val`."""
        for maker in self.function.operations:
            for parameter, arguments in maker.inputs.items():
                for argument in arguments:
                    if isinstance(argument, Value):
                        yield maker, parameter, argument


def counted(operations: list[Operation]) -> str:
    """Return the types of some operations, the most frequent first: "9 mul, 2 add"."""
    counts = Counter(o.type for o in operations).most_common()
    return ", ".join(f"{n} {name}" for name, n in counts)
