"""A graph to one function of a MIL program, through coremltools' builder."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Function, types
from coremltools.converters.mil.mil.types.symbolic import any_symbolic, is_symbolic

from macai.coreml.builder import mb
from macai.coreml.constexpr import constant, expanded, of_few_values
from macai.coreml.few_values import palette_of
from macai.coreml.graph import Graph, Node, Value
from macai.coreml.ops import OPS, Var
from macai.coreml.ops.sizes import extents, of_shape
from macai.coreml.states import read_only, state_chain
from macai.coreml.stored import Stored
from macai.coreml.supported import check_supported
from macai.errors import ExportError

# Where float16 ends, with room for what is added to it: masks are -3e38 or -inf in many models.
_LARGEST = 6e4
_FP = ("fp16", "fp32")
MIL_TYPES: dict[str, Any] = {
    "fp16": types.fp16,
    "fp32": types.fp32,
    "int32": types.int32,
    "bool": types.bool,
}


Compress = Callable[[str, np.ndarray], Stored | None]
"""A weight's path and its array -> how it is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a graph is lowered.

    Attributes:
        precision: Type of floats: "fp16", where float32 is kept for what needs it, or "fp32".
        positions: The number of positions RoPE has tables for; None computes its angles in the
            graph where they are not known.
        fused_attention: Whether attention is one op (iOS 18); else matmul, softmax, matmul.
        compress: How a named matrix of a Linear or a Take is stored, asked with its path and its
            array; None, or a None it returns, leaves it as it is. See compress.Compression.
        palettes: Whether a weight of few distinct values is stored as a table of them.
    """

    precision: str = "fp16"
    positions: int | None = None
    fused_attention: bool = True
    compress: Compress | None = None
    palettes: bool = False


@dataclass(slots=True)
class Lowering:
    """What the op functions share while one graph is lowered."""

    graph: Graph
    settings: Settings
    keep32: frozenset[str] = frozenset()
    states: dict[str, Var] = field(default_factory=dict)  # by name of a value in a state's chain
    values: dict[str, Var] = field(default_factory=dict)
    producers: Mapping[str, Node] = field(init=False)
    _half: bool = field(init=False)
    _matrices: frozenset[str] = field(init=False)
    _cache: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        floats = {c.dtype for c in self.graph.constants.values()}
        self._half = bool(floats & {mx.float16, mx.bfloat16})
        self.producers = self.graph.producers()
        self._matrices = matrices(self.graph)

    def mil_type(self, value: Value) -> str:
        """Return the MIL type a traced value is lowered to.

        A float32 in a model of half precision was asked for by the model, and stays.
        """
        if value.name in self.states:
            return "fp16"  # Core ML keeps no state of another type
        if not value.is_float:
            return "bool" if value.dtype == "bool" else "int32"
        if self.settings.precision == "fp32" or value.name in self.keep32:
            return "fp32"
        return "fp32" if self._half and value.dtype == "float32" else "fp16"

    def loose(self, value: Value) -> Var:
        """Return the MIL value, which may lack what broadcasting would add to its shape."""
        if value.name not in self.values:
            self.values[value.name] = self.weight(value, self.mil_type(value))
        return self.values[value.name]

    def var(self, value: Value) -> Var:
        """Return the MIL value in the traced shape."""
        loose = self.loose(value)
        if loose.shape == value.shape:
            return loose
        return self.once(("broadcast", value.name), lambda: _broadcast(self, loose, value.shape))

    def array(self, value: Value) -> np.ndarray | None:
        """Return a constant as numpy (bfloat16 as float32), or None if it is not known now."""
        constant = self.graph.constants.get(value.name)
        if constant is None:
            return None
        if constant.dtype == mx.bfloat16:
            constant = constant.astype(mx.float32)
        mx.eval(constant)
        return np.array(constant, copy=False)

    def weight(self, value: Value, mil_type: str) -> Var:
        """Return a constant of the graph as a MIL const of `mil_type`, one for all its uses."""
        array = self.array(value)
        if array is None:
            raise KeyError(value.name)
        name = self.graph.weights.get(value.name, "")
        return self.once(
            ("const", value.name, mil_type), lambda: self._written(value, array, mil_type, name)
        )

    def stored(self, value: Value) -> Stored | None:
        """Return how the settings ask to store a matrix; None as it is."""
        ask, array = self.settings.compress, self.array(value)
        name = self.graph.weights.get(value.name, "")
        if ask is None or array is None or not name or value.name not in self._matrices:
            return None
        return ask(name, array)

    def _written(self, value: Value, array: np.ndarray, mil_type: str, name: str) -> Var:
        """Return a constant as a new MIL value, compressed if the settings ask for it."""
        if (stored := self.stored(value)) is not None:
            return expanded(self, stored, mil_type, name)
        return self.const(array, mil_type, name=name)

    def const(self, array: Any, mil_type: str, *, name: str = "") -> Var:
        """Return a new MIL const; one with a name is stored once for all functions."""
        array = as_type(np.asarray(array), mil_type)
        if not name:
            return mb.const(val=array)
        if self.settings.palettes and (found := palette_of(array)) is not None:
            return of_few_values(self, found, mil_type, name)
        var = mb.const(val=array, name=mil_name(name))
        var.op.weight_id = f"{name}:{mil_type}"
        return var

    def part(self, array: np.ndarray, dtype: str, name: str) -> Var:
        """Return a MIL const of any type under a name of its own, one for all its uses."""
        key = ("part", name, dtype)
        return self.once(key, lambda: constant(array, dtype, name, mil_name(name)))

    def cast(self, var: Var, mil_type: str) -> Var:
        """Return `var` in another type, cast once."""
        if var.dtype == MIL_TYPES[mil_type]:
            return var
        if mil_type == "fp16" and var.op is not None and var.op.op_type == "cast":
            before = var.op.x
            if before.dtype == types.fp16:  # float32 and back
                return before
        return self.once(("cast", var.name, mil_type), lambda: _cast(var, mil_type))

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when first called with this key."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def lower(
    graph: Graph,
    settings: Settings,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    states: Mapping[str, int] | None = None,
    keep32: frozenset[str] = frozenset(),
    opset: Any,
) -> Any:
    """Return a MIL Function.

    Core ML takes and gives no booleans and nothing of rank 0: at the borders of the function a bool
    is int32, 0 or 1, and a number is an array [1].

    Args:
        graph: What is lowered. Its inputs are `inputs`, then the states; its outputs likewise.
        settings: Precision and forms.
        inputs: A name for each input that is not a state.
        outputs: A name for each output that is not a state.
        states: State names, each with the place of its input among the graph's inputs; the states
            come back in this order after the other outputs.
        keep32: Names of values that stay float32.
        opset: The coremltools target.

    Raises:
        UnsupportedOpError: primitives without a lowering, all of them.
        ExportError: a lowering whose result has another shape or type than was traced.
    """
    states = states or {}
    check_supported(graph)
    placeholders = {}
    specs: dict[str, Any] = {}
    lowering = Lowering(graph, settings, keep32)
    for label, value in zip(inputs, graph.inputs, strict=False):
        kind = lowering.mil_type(value)
        kind = "int32" if kind == "bool" else kind
        specs[label] = Builder.TensorSpec(value.shape or (1,), MIL_TYPES[kind])
        placeholders[label] = value
    for label, place in states.items():
        if not graph.inputs[place].is_float:
            raise ExportError(
                f"state {label} is {graph.inputs[place].dtype}",
                hint="Core ML keeps float16 between calls: return it as an output, and take it in",
            )
        specs[label] = Builder.StateTensorSpec(graph.inputs[place].shape, types.fp16)
    with Function(specs, opset_version=opset) as function:
        for label, value in placeholders.items():
            lowering.values[value.name] = _input(value, function.inputs[label], label)
        finals = graph.outputs[len(outputs) :]
        unwritten = read_only(graph, states.values(), finals)
        chains = {}
        for (label, place), final in zip(states.items(), finals, strict=True):
            state = function.inputs[label]
            chain = state_chain(graph, graph.inputs[place], final)
            lowering.states |= dict.fromkeys(chain, state)
            chains[label] = (state, final, chain)
            lowering.values[graph.inputs[place].name] = mb.read_state(input=state)
        for node in graph.nodes:
            _lower_node(lowering, node)
        for state, final, chain in chains.values():
            if final.name in unwritten:
                continue
            if final.name not in chain:  # not written piece by piece
                mb.coreml_update_state(
                    state=state, value=lowering.cast(lowering.var(final), "fp16")
                )
        function.set_outputs(
            [_output(lowering, v, label) for v, label in zip(graph.outputs, outputs, strict=False)]
        )
    return function


def matrices(graph: Graph) -> frozenset[str]:
    """Return the names of the weights that are used as a Linear's or a Take's matrix alone."""
    places = {"Linear": 1, "Conv1x1": 1, "Take": 0, "PlainTake": 0}
    used: set[str] = set()
    other = {v.name for v in graph.outputs}
    for node in graph.nodes:
        for place, value in enumerate(node.inputs):
            (used if place == places.get(node.op) else other).add(value.name)
    named = {v for v in used - other if v in graph.weights}
    return frozenset(v for v in named if graph.constants[v].ndim == 2)


def as_type(array: np.ndarray, mil_type: str) -> np.ndarray:
    """Return a constant in the numpy type of `mil_type`; float16 is held within its range."""
    if mil_type == "fp16" and array.dtype != np.float16:
        array = (
            np.clip(array, -_LARGEST, _LARGEST)
            if np.abs(array).max(initial=0) > _LARGEST
            else array
        )
    if mil_type == "fp16" and not all_finite(array):
        array = np.clip(array, -_LARGEST, _LARGEST)
    kind = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}[mil_type]
    return np.asarray(array, dtype=kind)


def all_finite(array: np.ndarray) -> bool:
    """Return whether no element is infinite or NaN; of float16 by its bits, which is faster."""
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    # Infinities and NaN are the largest of both signs.
    positive, negative = array.view(np.int16), array.view(np.uint16)
    return bool(positive.max(initial=0) < 0x7C00 and negative.max(initial=0) < 0xFC00)


def mil_name(path: str) -> str:
    """Return a parameter's path as MIL spells names."""
    return "".join(c if c.isalnum() else "_" for c in path)


# What coremltools' builder raises for operands it does not take, and op functions for theirs.
# Others are mistakes of ours, and keep their traceback.
_REFUSALS = (NotImplementedError, TypeError, ValueError)


def _lower_node(lowering: Lowering, node: Node) -> None:
    entry = OPS[node.op]
    get = lowering.loose if entry.broadcasts else lowering.var
    inputs = node.inputs[: entry.operands]
    operands = [get(v) for v in inputs]
    if entry.casts:
        kind = _compute_type(lowering, node)
        operands = [
            lowering.cast(var, kind) if v.is_float else var
            for v, var in zip(inputs, operands, strict=True)
        ]
    try:
        result = entry.lower(lowering, node, *operands)
    except _REFUSALS as e:
        raise ExportError(f"{node}: {e}") from e
    results = result if isinstance(result, tuple) else (result,)
    for value, var in zip(node.outputs, results, strict=True):
        lowering.values[value.name] = _checked(lowering, node, value, var, entry.broadcasts)


def _compute_type(lowering: Lowering, node: Node) -> str:
    """The float type of a node's operands: the result's, or of a comparison the widest."""
    if node.outputs[0].is_float:
        return lowering.mil_type(node.outputs[0])
    wide = any(v.is_float and lowering.mil_type(v) == "fp32" for v in node.inputs)
    return "fp32" if wide else "fp16"


def _checked(lowering: Lowering, node: Node, value: Value, var: Var, broadcasts: bool) -> Var:
    """Return `var` in the type the trace asks for; ExportError if its shape is another."""
    kind = lowering.mil_type(value)
    if var.dtype != MIL_TYPES[kind]:
        if kind not in _FP or var.dtype not in (types.fp16, types.fp32):
            raise ExportError(f"{node}: lowered to {types.builtin_to_string(var.dtype)}")
        var = lowering.cast(var, kind)
    shape = tuple(var.shape)
    if any_symbolic(shape):  # where coremltools cannot tell, the trace does
        last = value.shape[len(value.shape) - len(shape) :]
        shape = tuple(t if is_symbolic(s) else s for s, t in zip(shape, last, strict=True))
        var = of_shape(var, shape)
    if shape != value.shape and not (broadcasts and _broadcasts(shape, value.shape)):
        raise ExportError(f"{node}: lowered to shape {list(shape)}")
    state = lowering.states.get(value.name)
    return mb.coreml_update_state(state=state, value=var) if state is not None else var


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False)
    )


def _broadcast(lowering: Lowering, var: Var, shape: tuple[int, ...]) -> Var:
    if var.val is not None and not any_symbolic(shape):
        return mb.const(val=np.broadcast_to(var.val, shape).copy())
    padded = (1,) * (len(shape) - len(var.shape)) + tuple(var.shape)
    if padded != tuple(var.shape):
        var = mb.reshape(x=var, shape=padded)
    if padded == shape:
        return var
    reps = [1 if s == p else s for s, p in zip(shape, padded, strict=True)]
    return of_shape(mb.tile(x=var, reps=extents(lowering, reps)), shape)


def _cast(var: Var, mil_type: str) -> Var:
    if var.val is not None and not var.op.op_type.startswith("constexpr"):
        return mb.const(val=as_type(np.asarray(var.val), mil_type))
    return mb.cast(x=var, dtype=mil_type)


def _input(value: Value, var: Var, label: str) -> Var:
    if value.dtype == "bool":
        var = mb.cast(x=var, dtype="bool", name=f"{label}_bool")
    return var if value.shape else mb.squeeze(x=var, name=f"{label}_scalar")


def _output(lowering: Lowering, value: Value, label: str) -> Var:
    """Return an output under its name; an input or a constant needs an op to carry it."""
    var = lowering.var(value)
    if value.dtype == "bool":
        var = mb.cast(x=var, dtype="int32")
    if not value.shape:
        return mb.expand_dims(x=var, axes=[0], name=label)
    return mb.identity(x=var, name=label)
