"""Channels on axis 1, positions last: the form that the Neural Engine's convolutions have.

    Linear(x: [1, T, C], W, b)            ->    Conv1x1(x: [1, C, 1, T], W, b): [1, N, 1, T]
    Reshape(x): [1, T, H, D]              ->    Heads(x: [1, H D, 1, T]): [1, D, H, T]
    Transpose[0, 2, 1, 3] of heads        ->    nothing
    RoPE, norms, attention of heads       ->    the same over axis 1
    element by element                    ->    the same, operands turned
    Take rows of a weight                 ->    PlainTake

Where one node has a value in that form and another needs it as traced, it is turned, once. What is
not listed keeps the traced form. See Apple's ml-ane-transformers for the form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import Any

import mlx.core as mx

from macai.coreml.graph import Graph, Node, Value

_UNARY = {
    "Abs", "AsType", "Cos", "Erf", "Exp", "GELU", "Log", "Log1p", "Negative", "SiLU", "Sigmoid",
    "Sin", "Sqrt", "Square", "Tanh",
}  # fmt: skip
_BINARY = {"Add", "Divide", "Maximum", "Minimum", "Multiply", "Power", "Subtract"}


@dataclass(frozen=True, slots=True)
class _Form:
    """How a traced value lies with channels first: for each axis the traced one, None for a new."""

    axes: tuple[int | None, ...]

    def shape(self, traced: Sequence[int]) -> tuple[int, ...]:
        return tuple(1 if axis is None else traced[axis] for axis in self.axes)

    def axis(self, traced: int) -> int:
        return self.axes.index(traced)

    @property
    def rank(self) -> int:
        """Of the traced value."""
        return sum(axis is not None for axis in self.axes)


ROWS = _Form((0, 2, None, 1))
"""[1, T, C] as [1, C, 1, T]."""
HEADS = _Form((0, 3, 1, 2))
"""[1, H, T, D] as [1, D, H, T]."""
ROWS_OF_HEADS = _Form((0, 3, 2, 1))
"""[1, T, H, D] as [1, D, H, T]."""
_OTHER = {HEADS: ROWS_OF_HEADS, ROWS_OF_HEADS: HEADS}


def channels_first(graph: Graph) -> None:
    """Give each Linear, and what is between them, channels on axis 1, in place."""
    rewriting = _Rewriting(graph)
    for node in graph.nodes:
        if not rewriting.turned(node):
            rewriting.keep(node)
    for value in graph.outputs:
        rewriting.traced(value)
    graph.nodes = rewriting.nodes


class _Rewriting:
    """The nodes so far, and in which forms each value is there."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self._producers = graph.producers()
        self._turned: dict[str, tuple[Value, _Form]] = {}  # by traced name
        self._missing: set[str] = set()  # traced values that are there turned only
        self._constants: dict[tuple[str, _Form], Value] = {}
        self._fresh = (f"channels_{n}" for n in count())

    def keep(self, node: Node) -> None:
        """Take a node as it was traced."""
        for value in node.inputs:
            self.traced(value)
        self.nodes.append(node)

    def turned(self, node: Node) -> bool:
        """Take a node in the new form, if it has one here."""
        handler = _HANDLERS.get(node.op)
        return handler is not None and handler(self, node)

    def form(self, value: Value) -> _Form | None:
        """Return the form that a value is there in."""
        entry = self._turned.get(value.name)
        return entry[1] if entry else None

    def emit(self, node: Node, form: _Form) -> None:
        """Take a node whose outputs, given as traced, come in a form."""
        outputs = []
        for traced in node.outputs:
            value = Value(next(self._fresh), form.shape(traced.shape), traced.dtype)
            self._turned[traced.name] = (value, form)
            self._missing.add(traced.name)
            outputs.append(value)
        self.nodes.append(replace(node, outputs=tuple(outputs)))

    def alias(self, value: Value, other: Value, form: _Form) -> None:
        """Let `value` be what `other` is there as, under another form."""
        self._turned[value.name] = (self._turned[other.name][0], form)
        self._missing.add(value.name)

    def channels(self, value: Value, form: _Form) -> Value:
        """Return a value in a form."""
        if value.name in self.graph.constants:
            return self._constant(value, form)
        there = self._turned.get(value.name)
        if there is not None and there[1] == form:
            return there[0]
        self.traced(value)
        made = self._moved(value, form)
        self._turned[value.name] = (made, form)
        return made

    def traced(self, value: Value) -> Value:
        """Return a value as it was traced."""
        if value.name in self._missing:
            self._missing.remove(value.name)
            turned, form = self._turned[value.name]
            kept = [axis for axis in form.axes if axis is not None]
            perm = tuple(kept.index(axis) for axis in range(form.rank))
            shape = tuple(value.shape[axis] for axis in kept)
            if shape != turned.shape:
                turned = self._reshape(turned, shape)
            self.nodes.append(_transpose(turned, perm, value))
        return value

    def _moved(self, value: Value, form: _Form) -> Value:
        """A traced value, turned by new nodes."""
        perm = tuple(axis for axis in form.axes if axis is not None)
        shape = tuple(value.shape[axis] for axis in perm)
        moved = Value(next(self._fresh), shape, value.dtype)
        self.nodes.append(_transpose(value, perm, moved))
        whole = form.shape(value.shape)
        return moved if whole == shape else self._reshape(moved, whole)

    def _reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        made = Value(next(self._fresh), shape, value.dtype)
        self.nodes.append(Node("Reshape", (value,), (made,), (shape,)))
        return made

    def _constant(self, value: Value, form: _Form) -> Value:
        if (value.name, form) not in self._constants:
            array = self.graph.constants[value.name]
            array = array.reshape((1,) * (form.rank - array.ndim) + tuple(array.shape))
            turned = mx.transpose(array, [axis for axis in form.axes if axis is not None])
            turned = turned.reshape(form.shape(array.shape))
            mx.eval(turned)
            made = Value(next(self._fresh), tuple(turned.shape), value.dtype)
            self.graph.constants[made.name] = turned
            if value.name in self.graph.weights:
                self.graph.weights[made.name] = self.graph.weights[value.name]
            self._constants[value.name, form] = made
        return self._constants[value.name, form]

    def operand(self, value: Value, form: _Form) -> Value:
        """Return what is broadcast to a value of a form, before it is."""
        base = self.base(value)
        is_constant = base.name in self.graph.constants
        if is_constant and len(base.shape) <= 1 and prod(base.shape) == 1:
            return base
        return self.channels(base if is_constant or len(base.shape) == form.rank else value, form)

    def base(self, value: Value) -> Value:
        """Return what a value is a broadcast of, or the value."""
        node = self._producers.get(value.name)
        while node is not None and node.op == "Broadcast":
            value = node.inputs[0]
            node = self._producers.get(value.name)
        return value


def _transpose(value: Value, perm: tuple[int, ...], to: Value) -> Node:
    """What moves the axes: a Reshape where nothing moves past another."""
    moving = [axis for axis in perm if value.shape[axis] != 1]
    if moving == sorted(moving):
        return Node("Reshape", (value,), (to,), (to.shape,))
    return Node("Transpose", (value,), (to,), (list(perm),))


def _linear(r: _Rewriting, node: Node) -> bool:
    x = node.inputs[0]
    if len(x.shape) != 3 or x.shape[0] != 1:
        return False
    inputs = (r.channels(x, ROWS), *node.inputs[1:])
    r.emit(replace(node, op="Conv1x1", inputs=inputs), ROWS)
    return True


def _take(r: _Rewriting, node: Node) -> bool:
    if node.inputs[0].name not in r.graph.weights:
        return False
    r.keep(replace(node, op="PlainTake"))
    return True


def _norm(r: _Rewriting, node: Node) -> bool:
    x, *affine = node.inputs
    form = r.form(x)
    if form is None and len(x.shape) == 3 and x.shape[0] == 1:
        form = ROWS
    if form is None or any(v.name not in r.graph.constants for v in affine):
        return False
    inputs = (r.channels(x, form), *(r.channels(v, form) for v in affine))
    r.emit(replace(node, op=f"Channel{node.op}", inputs=inputs), form)
    return True


def _elementwise(r: _Rewriting, node: Node) -> bool:
    output = node.outputs[0]
    own = [v for v in node.inputs if v.shape == output.shape]
    forms = {form for v in own if (form := r.form(v)) is not None}
    ranks = {len(v.shape) for v in node.inputs if r.base(v).name not in r.graph.constants}
    if len(forms) != 1 or ranks != {len(output.shape)}:
        return False
    form = forms.pop()
    inputs = tuple(r.operand(v, form) for v in node.inputs)
    r.emit(replace(node, inputs=inputs), form)
    return True


def _reshape(r: _Rewriting, node: Node) -> bool:
    x, output = node.inputs[0], node.outputs[0]
    form = r.form(x)
    if form == ROWS and len(output.shape) == 4:
        T, C = x.shape[1:]
        for to in (ROWS_OF_HEADS, HEADS):
            D, H, rows = to.shape(output.shape)[1:]
            if (output.shape[0], rows, H * D) == (1, T, C) and _splits_only(output, to):
                r.emit(replace(node, op="Heads", inputs=(r.channels(x, ROWS),)), to)
                return True
    elif form in _OTHER and 1 in x.shape[1:3] and output.shape == _swapped(x.shape):
        r.alias(output, x, _OTHER[form])
        return True
    elif form in _OTHER and len(output.shape) == 3 and _splits_only(x, form):
        D, H, T = form.shape(x.shape)[1:]
        if output.shape == (1, T, H * D):
            r.emit(replace(node, op="JoinHeads", inputs=(r.channels(x, form),)), ROWS)
            return True
    return False


def _swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1], *shape[3:])


def _splits_only(value: Value, form: _Form) -> bool:
    """Whether its numbers are in the order of [1, T, H D]: heads' only with one row or one head."""
    return form == ROWS_OF_HEADS or 1 in value.shape[1:3]


def _transposed(r: _Rewriting, node: Node) -> bool:
    x, output = node.inputs[0], node.outputs[0]
    form = r.form(x)
    if form not in _OTHER or list(node.arguments[0]) != [0, 2, 1, 3]:
        return False
    r.alias(output, x, _OTHER[form])
    return True


def _rope(r: _Rewriting, node: Node) -> bool:
    x = node.inputs[0]
    if r.form(x) != HEADS:
        return False
    inputs = (r.channels(x, HEADS), *node.inputs[1:])
    r.emit(replace(node, op="ChannelRoPE", inputs=inputs), HEADS)
    return True


def _concatenate(r: _Rewriting, node: Node) -> bool:
    forms = {r.form(v) for v in node.inputs}
    form = forms.pop()
    if forms or form is None:
        return False
    inputs = tuple(r.channels(v, form) for v in node.inputs)
    r.emit(replace(node, inputs=inputs, arguments=(form.axis(node.arguments[0]),)), form)
    return True


def _split(r: _Rewriting, node: Node) -> bool:
    x = node.inputs[0]
    form = r.form(x)
    if form is None:
        return False
    indices, axis = node.arguments
    arguments = (indices, form.axis(axis))
    inputs = (r.channels(x, form),)
    r.emit(replace(node, inputs=inputs, arguments=arguments), form)
    return True


def _slice(r: _Rewriting, node: Node) -> bool:
    x = node.inputs[0]
    form = r.form(x)
    if form is None:
        return False
    inputs = (r.channels(x, form), *node.inputs[1:])
    arguments: tuple[Any, ...]
    if node.op == "Slice":
        arguments = tuple(
            tuple(other if axis is None else numbers[axis] for axis in form.axes)
            for numbers, other in zip(node.arguments, (0, 1, 1), strict=True)
        )
    else:
        axes, size = node.arguments
        arguments = ([form.axis(axis) for axis in axes], form.shape(size))
    r.emit(replace(node, inputs=inputs, arguments=arguments), form)
    return True


def _attention(r: _Rewriting, node: Node) -> bool:
    named = node.operands()
    q, k = named["q"], named["k"]
    mask = named.get("mask")
    is_plain = q.shape[0] == k.shape[0] == 1 and "sinks" not in named
    if not is_plain or (mask is not None and mask.shape[:-2] not in _ONE):
        return False
    inputs = tuple(r.channels(v, HEADS) if n == "q" else r.traced(v) for n, v in named.items())
    r.emit(replace(node, op="ChannelAttention", inputs=inputs), HEADS)
    return True


_ONE = ((), (1,), (1, 1))  # one mask for all heads
_Handler = Callable[[_Rewriting, Node], bool]
_HANDLERS: Mapping[str, _Handler] = dict.fromkeys(_UNARY | _BINARY, _elementwise) | {
    "Linear": _linear,
    "Take": _take,
    "RMSNorm": _norm,
    "LayerNorm": _norm,
    "Reshape": _reshape,
    "Transpose": _transposed,
    "RoPE": _rope,
    "Concatenate": _concatenate,
    "Split": _split,
    "Slice": _slice,
    "DynamicSlice": _slice,
    "ScaledDotProductAttention": _attention,
}
