"""Values that float16 cannot hold, in float32: a rewrite of a package that is written already.

    y = add(x, z)         x, z: fp16         x32 = cast(x, fp32); z32 = cast(z, fp32)
                                             y = add(x32, z32)                    in fp32
    y = linear(x, W)      W: fp16, or in     s = cast(mul(x32, 2^-k), fp16)
                          any other form     y = mul(cast(linear(s, W), fp32), 2^k)

What reads such a value and gives one that float16 holds is computed in float32 too, and rounded
after. Weights stay as they are: a product is made of an input that is smaller by a power of two,
which rounds nothing but what is then below float16's least normal number. States are float16 on
any device, so what is written to one stays so.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil.backend.mil.helper import create_scalar_value
from coremltools.proto import MIL_pb2, Model_pb2

from macai.coreml.package import MODEL
from macai.errors import ExportError

LARGEST = float(np.finfo(np.float16).max)
_ROOM = 8192.0  # a product's input and result are below it: sums on the way have three bits more
_FP16, _FP32 = MIL_pb2.FLOAT16, MIL_pb2.FLOAT32
_NAMES = {_FP16: "fp16", _FP32: "fp32"}
# What takes floats of either type and gives the same type, or booleans.
_EITHER = {
    "abs", "add", "ceil", "clip", "concat", "cumsum", "equal", "erf", "exp", "expand_dims",
    "floor", "floor_div", "gather", "gather_along_axis", "gelu", "greater", "greater_equal",
    "identity", "less", "less_equal", "log", "matmul", "maximum", "minimum", "mod", "mul",
    "not_equal", "pow", "real_div", "reduce_max", "reduce_mean", "reduce_min", "reduce_sum",
    "relu", "reshape", "round", "rsqrt", "scaled_dot_product_attention", "select", "sigmoid",
    "sign", "silu", "slice_by_index", "slice_by_size", "softmax", "softplus", "split", "sqrt",
    "square", "squeeze", "stack", "sub", "tanh", "tile", "topk", "transpose",
}  # fmt: skip

Message = Any  # the protobuf's, which have no types


def widen(
    package: Path, peaks: Mapping[str, Mapping[str, float]], wide: Mapping[str, frozenset[str]]
) -> dict[str, int]:
    """Compute values of a package in float32 from now on; return how many, by function.

    Args:
        package: Changed in place.
        peaks: The largest magnitude of values, by function and name.
        wide: Which of these are not for float16, by function. A function's outputs stay as they
            are declared.

    Raises:
        ExportError: one beyond float16 is written to a state, or comes of an operation that is not
            known to take float32.
    """
    file = package / MODEL
    model = Model_pb2.Model.FromString(file.read_bytes())
    counts = {
        name: _Function(model.mlProgram.functions[name], name, peaks[name], wide[name]).rewrite()
        for name in sorted(wide)
        if wide[name]
    }
    file.write_bytes(model.SerializeToString(deterministic=True))
    return counts


class _Function:
    """Rewrites one function."""

    def __init__(
        self, function: Message, name: str, peaks: Mapping[str, float], wide: frozenset[str]
    ) -> None:
        self._name, self._peaks = name, peaks
        self._block = function.block_specializations[function.opset]
        self._wide = set(wide) - set(self._block.outputs)
        self._types = {i.name: _copied(i.type) for i in function.inputs}
        self._constants: dict[str, Message] = {}
        self._weights: set[str] = set()
        self._done: list[Message] = []
        self._made: dict[tuple[str, Any], str] = {}
        self._taken = {o.name for op in self._block.operations for o in op.outputs} | {*self._types}

    def rewrite(self) -> int:
        """Do it; return how many values are float32 now."""
        operations = [_copied(op) for op in self._block.operations]
        for op in operations:
            self._translate(op)
        del self._block.operations[:]
        self._block.operations.extend(self._done)
        return len(self._wide)

    def _translate(self, op: Message) -> None:
        if op.type == "const":
            self._constants[op.outputs[0].name] = op
        if op.type == "const" or op.type.startswith("constexpr_"):
            self._weights.update(o.name for o in op.outputs)
        names = [a.name for i in op.inputs.values() for a in i.arguments if a.name]
        if not self._wide.intersection([*names, *(o.name for o in op.outputs)]):
            self._emit(op)
        elif op.type == "cast":
            self._cast(op)
        elif op.type == "linear":
            self._linear(op)
        elif op.type in _EITHER and not self._is_table(op):
            self._compute(op)
        else:
            self._leave(op)

    def _cast(self, op: Message) -> None:
        """A change of type whose input or result is float32 now."""
        (x,) = op.inputs["x"].arguments
        (result,) = op.outputs
        if result.name in self._wide:
            result.type.tensorType.dataType = _FP32
        kind = result.type.tensorType.dataType
        if self._kind(x.name) == kind:
            made = MIL_pb2.Operation(type="identity", outputs=[result])
            made.inputs["x"].arguments.add(name=x.name)
            self._emit(made)
        else:
            if kind in _NAMES:
                op.inputs["dtype"].arguments[0].name = self._constant(_NAMES[kind])
            self._emit(op)

    def _compute(self, op: Message) -> None:
        """An operation in float32; results that are not wide are rounded."""
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if self._kind(binding.name) == _FP16:
                    binding.name = self._as(binding.name, _FP32)
        rounded = []
        for output in op.outputs:
            if output.type.tensorType.dataType != _FP16:
                continue
            if output.name not in self._wide:
                computed = self._free(output.name)
                rounded.append((computed, output.name, _copied(output.type)))
                output.name = computed
            output.type.tensorType.dataType = _FP32
        self._emit(op)
        for computed, name, type_ in rounded:
            self._operation("cast", {"x": computed, "dtype": self._constant("fp16")}, name, type_)

    def _linear(self, op: Message) -> None:
        """A product with a weight as it is, of an input that is smaller by 2^k."""
        (x,), (result,) = op.inputs["x"].arguments, op.outputs
        bias = op.inputs["bias"].arguments[0].name if "bias" in op.inputs else ""
        peak = max(self._peaks.get(n, 0.0) for n in (x.name, result.name))
        power = max(math.ceil(math.log2(max(peak, 1.0) / _ROOM)), 0)
        half, name, input_type = _copied(result.type), result.name, self._types[x.name]
        wide = _copied(half)
        wide.tensorType.dataType = _FP32
        small = self._new(
            "mul",
            {"x": self._as(x.name, _FP32), "y": self._constant(np.float32(2.0**-power))},
            x.name,
            _typed(input_type, _FP32),
        )
        small = self._new(
            "cast",
            {"x": small, "dtype": self._constant("fp16")},
            x.name,
            _typed(input_type, _FP16),
        )
        weight = op.inputs["weight"].arguments[0].name
        product = self._new("linear", {"x": small, "weight": weight}, name, half)
        product = self._new("cast", {"x": product, "dtype": self._constant("fp32")}, name, wide)
        last = {"x": product, "y": self._constant(np.float32(2.0**power))}
        kind = "mul"
        if bias:
            product = self._new("mul", last, name, wide)
            kind, last = "add", {"x": product, "y": self._as(bias, _FP32)}
        if name in self._wide:
            self._operation(kind, last, name, wide)
        else:
            product = self._new(kind, last, name, wide)
            self._operation("cast", {"x": product, "dtype": self._constant("fp16")}, name, half)

    def _is_table(self, op: Message) -> bool:
        """Whether it reads rows of a weight, which float16 holds."""
        return op.type == "gather" and op.inputs["x"].arguments[0].name in self._weights

    def _leave(self, op: Message) -> None:
        """An operation that stays float16, if what was measured fits."""
        own = {o.name for o in op.outputs} & self._wide
        read = [b for i in op.inputs.values() for b in i.arguments if b.name in self._wide]
        for name in (*own, *(b.name for b in read)):
            if self._peaks[name] > LARGEST:
                of_states = op.type in ("read_state", "write_state", "slice_update")
                raise ExportError(
                    f"{self._name}: values up to {self._peaks[name]:,.0f} are beyond float16, and "
                    f"{'a state' if of_states else op.type} holds no others",
                    hint="keys or values of this model are too large for Core ML"
                    if of_states
                    else "export it with --precision fp32",
                )
        self._wide -= own
        for binding in read:
            binding.name = self._as(binding.name, _FP16)
        self._emit(op)

    def _kind(self, name: str) -> int:
        """The type of a value, or 0 of what is no tensor."""
        type_ = self._types.get(name)
        return type_.tensorType.dataType if type_ is not None else 0

    def _as(self, name: str, kind: int) -> str:
        """Return a value in another type, cast once; a constant of the program is written anew."""
        if self._kind(name) == kind:
            return name
        if (name, kind) not in self._made:
            constant = self._constants.get(name)
            value = constant.attributes["val"] if constant is not None else None
            if value is not None and value.WhichOneof("value") == "immediateValue":
                self._made[name, kind] = self._rewritten(name, value)
            else:
                to = {"x": name, "dtype": self._constant(_NAMES[kind])}
                self._made[name, kind] = self._new(
                    "cast", to, name, _typed(self._types[name], kind)
                )
        return self._made[name, kind]

    def _rewritten(self, name: str, value: Message) -> str:
        """Write a float16 constant of the program as float32."""
        numbers = np.frombuffer(value.immediateValue.tensor.bytes.values, np.float16)
        made = MIL_pb2.Value(type=_typed(value.type, _FP32))
        made.immediateValue.tensor.floats.values.extend(numbers.astype(np.float32).tolist())
        return self._written(name, made)

    def _constant(self, value: Any) -> str:
        """Return a constant, written once."""
        key = ("", str(value))
        if key not in self._made:
            self._made[key] = self._written("c", create_scalar_value(value))
        return self._made[key]

    def _written(self, near: str, value: Message) -> str:
        op = MIL_pb2.Operation(type="const")
        op.outputs.add(name=self._free(near), type=value.type)
        op.attributes["val"].CopyFrom(value)
        self._emit(op)
        return str(op.outputs[0].name)

    def _new(self, kind: str, operands: Mapping[str, str], near: str, type_: Message) -> str:
        name = self._free(near)
        self._operation(kind, operands, name, type_)
        return name

    def _operation(self, kind: str, operands: Mapping[str, str], name: str, type_: Message) -> None:
        op = MIL_pb2.Operation(type=kind)
        for key, operand in operands.items():
            op.inputs[key].arguments.add(name=operand)
        op.outputs.add(name=name, type=type_)
        self._emit(op)

    def _free(self, near: str) -> str:
        """Return a name that is not taken, after another value's."""
        number = 1
        while f"{near}_{number}" in self._taken:
            number += 1
        self._taken.add(f"{near}_{number}")
        return f"{near}_{number}"

    def _emit(self, op: Message) -> None:
        for output in op.outputs:
            self._types[output.name] = output.type
        self._done.append(op)


def _copied(message: Message) -> Message:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _typed(type_: Message, kind: int) -> Message:
    made = _copied(type_)
    made.tensorType.dataType = kind
    return made
