"""MIL functions, as coremltools' builder made them, to the protobuf of a program.

coremltools' own way there runs passes that change results, and gives each use of a small constant
an operation of its own: half of a language model's program. Here a function has each constant once,
before its first use, and nothing that no output and no state needs. Names are as short as can be,
but for inputs, outputs, and weights in one of the functions, which have their paths there.
Operations have none: MIL.proto has a name among "any other information", and Core ML runs programs
without, such as Chromium's (services/webnn/coreml/graph_builder_coreml.cc) and rustnn's, where
constants have none either (src/converters/coreml_mlprogram.rs).
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count, product
from string import ascii_letters, ascii_uppercase, digits
from typing import Any

import numpy as np
from coremltools.converters.mil.backend.mil.helper import (
    create_immediate_value,
    create_valuetype_tensor,
    types_to_proto_primitive,
)
from coremltools.converters.mil.mil import types
from coremltools.proto import MIL_pb2

from macai.coreml.ops.table import Var
from macai.coreml.weight_file import WeightFile

_FILE = "@model_path/weights/weight.bin"
_UPDATE = "coreml_update_state"
_SECOND = digits + ascii_uppercase
_ANY = digits + ascii_letters
# What is left out where it is zero, as ONNX Runtime does for Core ML (gemm_op_builder.cc). Others
# that the builder's documentation calls optional are not: matmul's transposes, it says there.
_OPTIONAL = {("linear", "bias")}

Operation = Any  # coremltools' and the protobuf's, which have no types
Function = Any
Message = Any


def write_program(
    functions: Mapping[str, Function], weights: WeightFile, *, named: str, opset: str, inline: bool
) -> Message:
    """Return the MIL.proto Program of functions; their weights go to the file.

    Args:
        functions: coremltools' Functions by name.
        weights: The package's.
        named: The function whose weights are called by their paths.
        opset: What the format calls the set of operations: "CoreML8".
        inline: Whether what a constexpr is made of are operands: since iOS 18. They are attributes
            before.
    """
    program = MIL_pb2.Program(version=1)
    for name, function in functions.items():
        made = program.functions[name]
        made.opset = opset
        block = made.block_specializations[opset]
        _Writer(function, block, weights, named=name == named, inline=inline).write(made.inputs)
    return program


class _Writer:
    """Writes one function into its block."""

    def __init__(
        self,
        function: Function,
        block: Message,
        weights: WeightFile,
        *,
        named: bool,
        inline: bool,
    ) -> None:
        self._function, self._block, self._weights = function, block, weights
        self._named, self._inline = named, inline
        self._names: dict[int, str] = {}  # by the id of a Var
        self._constants: dict[Any, str] = {}  # by what tells their value
        self._types: dict[Any, Message] = {}
        self._taken = {v.name for v in (*function.inputs.values(), *function.outputs)}
        self._free = _short_names(self._taken)

    def write(self, inputs: Any) -> None:
        """Fill the block, and the function's `inputs`."""
        operations = _needed(self._function)
        used = {id(v) for op in operations for v in op.get_flattened_inputs()}
        for name, var in self._function.inputs.items():
            inputs.add(name=name, type=self._type(var))
            self._names[id(var)] = name
            if id(var) not in used:  # Core ML refuses an input that nothing reads
                self._operation("identity", {"x": [name]}, [(next(self._free), self._type(var))])
        outputs = {id(v) for v in self._function.outputs}
        for op in operations:
            self._translate(op, used | outputs)
        self._block.outputs.extend(self._names[id(v)] for v in self._function.outputs)

    def _translate(self, op: Operation, used: set[int]) -> None:
        if op.blocks:
            raise NotImplementedError(f"{op.op_type} has blocks of its own")
        if op.op_type.startswith("constexpr_"):
            self._constexpr(op)
            return
        if op.op_type == _UPDATE:
            state = [self._name(op.state)]
            self._operation("write_state", {"input": state, "data": [self._name(op.value)]}, [])
            if id(op.outputs[0]) in used:
                self._operation("read_state", {"input": state}, self._results(op))
            return
        operands = {
            key: [self._name(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
            for key, value in op.inputs.items()
            if not key.startswith("_") and not _left_out(op, key)
        }
        self._operation(op.op_type, operands, self._results(op))

    def _constexpr(self, op: Operation) -> None:
        """What it is made of is written into it, unless that is a constexpr as well."""
        values, operands = {}, {}
        for key, var in op.inputs.items():
            if var.op.op_type.startswith("constexpr_"):
                operands[key] = [self._name(var)]
            else:
                values[key] = self._value(var)
        self._operation(op.op_type, operands, self._results(op), values)

    def _operation(
        self,
        kind: str,
        operands: Mapping[str, Iterable[str]],
        results: list[tuple[str, Message]],
        values: Mapping[str, Message] | None = None,
    ) -> None:
        made = self._block.operations.add(type=kind)
        for key, names in operands.items():
            arguments = made.inputs[key].arguments
            for name in names:
                arguments.add(name=name)
        for key, value in (values or {}).items():
            if self._inline:
                made.inputs[key].arguments.add(value=value)
            else:
                made.attributes[key].CopyFrom(value)
        for name, type_ in results:
            made.outputs.add(name=name, type=type_)

    def _results(self, op: Operation) -> list[tuple[str, Message]]:
        """Name an operation's results."""
        for var in op.outputs:
            own = any(var is v for v in self._function.outputs)
            self._names[id(var)] = var.name if own else next(self._free)
        return [(self._names[id(v)], self._type(v)) for v in op.outputs]

    def _name(self, var: Var) -> str:
        """Return what a value is called here; a constant is written when it is first asked for."""
        if id(var) not in self._names:
            self._names[id(var)] = self._constant(var)
        return self._names[id(var)]

    def _constant(self, var: Var) -> str:
        in_file = self._weights.takes(var)
        place = self._weights.offset(var) if in_file else -1
        key = (place, var.val.shape, var.dtype) if in_file else _identity(var.val)
        if key not in self._constants:
            path = _path(var) if in_file and self._named else ""
            name = path if path and path not in self._taken else next(self._free)
            self._taken.add(name)
            self._constants[key] = name
            made = self._block.operations.add(type="const")
            made.outputs.add(name=name, type=self._type(var))
            made.attributes["val"].CopyFrom(self._value(var))
        return self._constants[key]

    def _value(self, var: Var) -> Message:
        if not self._weights.takes(var):
            return create_immediate_value(var)
        blob = MIL_pb2.Value.BlobFileValue(fileName=_FILE, offset=self._weights.offset(var))
        return MIL_pb2.Value(blobFileValue=blob, type=self._type(var))

    def _type(self, var: Var) -> Message:
        if var.sym_type not in self._types:
            made = create_valuetype_tensor(var.shape, types_to_proto_primitive(var.dtype))
            if types.is_state(var.sym_type):
                made = MIL_pb2.ValueType(stateType=MIL_pb2.StateType(wrappedType=made))
            self._types[var.sym_type] = made
        return self._types[var.sym_type]


def _needed(function: Function) -> list[Operation]:
    """Return the operations that an output or a state needs, in order; constants are not."""
    needed = {id(v) for v in function.outputs}
    kept = []
    for op in reversed(list(function.operations)):
        if op.op_type == "const":
            continue
        if op.op_type == _UPDATE or any(id(v) in needed for v in op.outputs):
            kept.append(op)
            needed |= {id(v) for v in op.get_flattened_inputs() if not _is_known(v)}
    return kept[::-1]


def _left_out(op: Operation, key: str) -> bool:
    return (op.op_type, key) in _OPTIONAL and not np.any(op.inputs[key].val)


def _is_known(var: Var) -> bool:
    """Whether a value is a constant, as the result of operations on constants is too."""
    return bool(var.can_be_folded_to_const())


def _identity(value: Any) -> Any:
    """What is equal for two small constants of one type and value, and for no others."""
    if isinstance(value, (np.ndarray, np.generic)):
        return str(value.dtype), np.shape(value), value.tobytes()
    return type(value), value


def _path(var: Var) -> str:
    """Return the name that a weight was given; constants without one have none."""
    return str(var.name) if getattr(var.op, "weight_id", None) is not None else ""


def _short_names(taken: set[str]) -> Iterator[str]:
    """Yield a0, b0, ..., ZZ, a00, ...: no word of MIL's text has a digit or a capital there."""
    for length in count():
        for letters in product(_ANY, repeat=length):
            for second, first in product(_SECOND, ascii_letters):
                name = f"{first}{second}{''.join(letters)}"
                if name not in taken:
                    yield name
