"""Read the functions of a MIL program: operations, blocks and the names they pass on.

Every name is checked to be defined before it is used, so a run cannot meet a cycle or a gap. What
an operation means is not known here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from macai.errors import PackageError
from macai.mil.types import DAMAGED, Proto, ValueType, parse_type
from macai.mil.values import Blobs, Value, parse_value

Argument = str | Value
"""What an input is bound to: the name of a value, or a constant of its own."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        type: Its MIL name, such as `linear`.
        name: Of its own; else of its first output; else of the state it writes.
        inputs: What each parameter is bound to; most have one argument, `concat`'s values several.
            Constants among the attributes, such as those of iOS 16's `constexpr_*`, are here too.
        outputs: Type by name, in order.
        blocks: Of `cond` and `while_loop`.
    """

    type: str
    name: str
    inputs: dict[str, tuple[Argument, ...]]
    outputs: dict[str, ValueType]
    blocks: tuple["Block", ...] = ()

    @property
    def input_names(self) -> dict[str, tuple[str, ...]]:
        """The values each parameter is bound to by name."""
        return {k: tuple(a for a in v if isinstance(a, str)) for k, v in self.inputs.items()}

    @property
    def stored_at(self) -> int | None:
        """Where in the file of weights the first is that it is made of; None if it has none."""
        values = (a for arguments in self.inputs.values() for a in arguments)
        places = (a.stored_at for a in values if not isinstance(a, str))
        return next((place for place in places if place is not None), None)


@dataclass(frozen=True, slots=True)
class Block:
    """A list of operations, each using only what comes before it."""

    inputs: dict[str, ValueType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]

    def walk(self) -> Iterator[Operation]:
        """Yield the operations in order, those of nested blocks after the one they belong to."""
        for operation in self.operations:
            yield operation
            for block in operation.blocks:
                yield from block.walk()


@dataclass(frozen=True, slots=True)
class Body:
    """A function as the program has it."""

    name: str
    opset: str
    inputs: dict[str, ValueType]
    block: Block


def parse_function(name: str, proto: Proto, blobs: Blobs) -> Body:
    """Read a MIL.proto Function.

    Raises:
        PackageError: it has no code for its opset, uses a name that is not defined before, or
            defines one twice.
    """
    where = f"function {name!r}"
    if proto.opset not in proto.block_specializations:
        raise PackageError(f"{where}: it has no block for its opset {proto.opset!r}", hint=DAMAGED)
    inputs = _named_types(proto.inputs, where)
    block_proto = proto.block_specializations[proto.opset]
    block = _block(block_proto, dict(inputs), blobs, where)
    return Body(name, proto.opset, inputs, block)


def _named_types(protos: Any, where: str) -> dict[str, ValueType]:
    types: dict[str, ValueType] = {}
    for proto in protos:
        if not proto.name or proto.name in types:
            raise PackageError(f"{where}: the name {proto.name!r} is there twice", hint=DAMAGED)
        types[proto.name] = parse_type(proto.type, f"{where}: {proto.name!r}")
    return types


def _block(proto: Proto, known: dict[str, ValueType], blobs: Blobs, where: str) -> Block:
    """Read a block; `known` is what it sees from outside and is added to."""
    inputs = _named_types(proto.inputs, where)
    known.update(inputs)
    operations = tuple(_operation(p, known, blobs, where) for p in proto.operations)
    for name in proto.outputs:
        if name not in known:
            raise PackageError(f"{where}: it returns {name!r}, which is not defined", hint=DAMAGED)
    return Block(inputs, tuple(proto.outputs), operations)


def _operation(proto: Proto, known: dict[str, ValueType], blobs: Blobs, where: str) -> Operation:
    attributes = {
        key: parse_value(value, blobs, f"{where}: {proto.type} {_label(proto)!r}: {key}")
        for key, value in proto.attributes.items()
    }
    name = attributes.pop("name").read() if "name" in attributes else _label(proto)
    where_now = f"{where}: {proto.type} {name!r}"
    inputs: dict[str, tuple[Argument, ...]] = {key: (v,) for key, v in attributes.items()}
    for key, argument in proto.inputs.items():
        inputs[key] = tuple(
            _argument(binding, known, blobs, f"{where_now}: {key}")
            for binding in argument.arguments
        )
    # A block sees what is defined before the operation, and keeps its own names to itself.
    blocks = tuple(_block(b, dict(known), blobs, where_now) for b in proto.blocks)
    outputs = _named_types(proto.outputs, where_now)
    for output, type_ in outputs.items():
        if output in known:
            raise PackageError(f"{where_now}: {output!r} is defined twice", hint=DAMAGED)
        known[output] = type_
    return Operation(proto.type, str(name), inputs, outputs, blocks)


def _label(proto: Proto) -> str:
    if proto.outputs:
        return str(proto.outputs[0].name)
    given = proto.inputs["input"].arguments if "input" in proto.inputs else ()
    return str(given[0].name) if given else ""


def _argument(binding: Proto, known: dict[str, ValueType], blobs: Blobs, where: str) -> Argument:
    kind = binding.WhichOneof("binding")
    if kind == "value":
        return parse_value(binding.value, blobs, where)
    if kind != "name":
        raise PackageError(f"{where}: bound to nothing", hint=DAMAGED)
    if binding.name not in known:
        raise PackageError(f"{where}: {binding.name!r} is used before it is defined", hint=DAMAGED)
    return str(binding.name)
