"""Channels before height and width, as Core ML's convolutions have them, all the way through.

    Transpose, Convolution, Transpose    ->    PictureConvolution(x: [B, C, H, W]): [B, D, H, W]
    GroupNorm, UpsampleNearest           ->    the same of [B, C, H, W]
    element by element, Pad, Concatenate ->    the same, axes and operands turned

With `pictures_and_rows_first` also what a transformer block does to [B, T, C], as [B, C, 1, T]: the
form that the Neural Engine's products have (Apple's ml-ane-transformers).

    Linear(x: [B, T, C], W, b)           ->    RowsLinear(x: [B, C, 1, T], W, b): [B, N, 1, T]
    LayerNorm, GroupNorm                 ->    the same over axis 1, in float16
    heads of q, k, v; attention; joined  ->    RowsAttention(q, k, v: [B, C, 1, T]): [B, C, 1, T]

Where something else reads such a value it is turned back, once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count

import mlx.core as mx

from macai.coreml.graph import Graph, Node, Value

_UNARY = {"Abs", "AsType", "Erf", "Exp", "GELU", "Negative", "SiLU", "Sigmoid", "Square", "Tanh"}
_BINARY = {"Add", "Divide", "Maximum", "Minimum", "Multiply", "Subtract"}

Form = tuple[int | None, ...]
"""For each axis the traced one, None for a new one of size 1."""

PICTURE: Form = (0, 3, 1, 2)
"""[B, H, W, C] as [B, C, H, W]."""
ROWS: Form = (0, 2, None, 1)
"""[B, T, C] as [B, C, 1, T]."""


def pictures_first(graph: Graph) -> None:
    """Turn what is between convolutions, in place."""
    _rewrite(graph, with_rows=False)


def pictures_and_rows_first(graph: Graph, *, chunk: int | None = None) -> None:
    """Turn what is between convolutions and in transformer blocks, in place.

    With `chunk`, attention is computed for so many rows at a time.
    """
    _rewrite(graph, with_rows=True, chunk=chunk)


def _rewrite(graph: Graph, *, with_rows: bool, chunk: int | None = None) -> None:
    if not any(node.op == "Convolution" for node in graph.nodes):
        return
    rewriting = _Rewriting(graph, with_rows, chunk)
    for node in graph.nodes:
        handler = _HANDLERS.get(node.op)
        if node.outputs[0].name in rewriting.done:
            continue
        if handler is None or not handler(rewriting, node):
            rewriting.keep(node)
    for value in graph.outputs:
        rewriting.traced(value)
    graph.nodes = rewriting.nodes
    graph.rename(rewriting.aliases)


class _Rewriting:
    """The nodes so far, and in which form each value is there."""

    def __init__(self, graph: Graph, with_rows: bool, chunk: int | None) -> None:
        self.graph, self.with_rows, self.chunk = graph, with_rows, chunk
        self.nodes: list[Node] = []
        self.aliases: dict[str, Value] = {}
        self.done: set[str] = set()  # values that need no node of their own any more
        self.producers, self.uses = graph.producers(), graph.uses()
        self.convolutions: dict[str, int] = {}  # places of their nodes, by traced name
        self.readers = {value.name: node for node in graph.nodes for value in node.inputs}
        self._turned: dict[str, tuple[Value, Form]] = {}  # by traced name
        self._missing: set[str] = set()  # traced values that are there turned only
        self._constants: dict[tuple[str, Form], Value] = {}
        self._fresh = (f"turned_{n}" for n in count())

    def fresh(self, shape: tuple[int, ...], dtype: str) -> Value:
        """Return a new value."""
        return Value(next(self._fresh), shape, dtype)

    def keep(self, node: Node) -> None:
        """Take a node as it was traced."""
        for value in node.inputs:
            self.traced(value)
        self.nodes.append(node)

    def form(self, value: Value) -> Form | None:
        """Return the form that a value is there in."""
        entry = self._turned.get(value.name)
        return entry[1] if entry else None

    def emit(self, node: Node, form: Form) -> None:
        """Take a node whose outputs have a form; they are given as traced."""
        outputs = []
        for value in node.outputs:
            turned = self.fresh(_shape(form, value.shape), value.dtype)
            self.is_there(value, turned, form)
            outputs.append(turned)
        self.nodes.append(replace(node, outputs=tuple(outputs)))

    def is_there(self, value: Value, turned: Value, form: Form) -> None:
        """Note that a traced value is there as another."""
        self._turned[value.name] = (turned, form)
        self._missing.add(value.name)

    def turned(self, value: Value, form: Form) -> Value:
        """Return a value in a form."""
        if value.name in self.graph.constants:
            return self._constant(value, form)
        there = self._turned.get(value.name)
        if there is not None and there[1] == form:
            return there[0]
        self.traced(value)
        perm = tuple(axis for axis in form if axis is not None)
        shape = tuple(value.shape[axis] for axis in perm)
        made = self._move(value, perm, self.fresh(shape, value.dtype))
        made = self.reshaped(made, _shape(form, value.shape))
        self._turned[value.name] = (made, form)
        return made

    def traced(self, value: Value) -> Value:
        """Return a value as it was traced."""
        if value.name in self._missing:
            self._missing.remove(value.name)
            turned, form = self._turned[value.name]
            kept = [axis for axis in form if axis is not None]
            turned = self.reshaped(turned, tuple(value.shape[axis] for axis in kept))
            self._move(turned, tuple(kept.index(axis) for axis in range(len(kept))), value)
        return value

    def reshaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Return a value in another shape."""
        if shape == value.shape:
            return value
        made = self.fresh(shape, value.dtype)
        self.nodes.append(Node("Reshape", (value,), (made,)))
        return made

    def operand(self, value: Value, form: Form) -> Value:
        """Return what is broadcast to a value of a form, before it is."""
        base = self.base(value)
        if base.name in self.graph.constants and base.shape in ((), (1,)):
            return base
        is_constant = base.name in self.graph.constants
        return self.turned(base if is_constant or len(base.shape) == _rank(form) else value, form)

    def base(self, value: Value) -> Value:
        """Return what a value is a broadcast of, or the value."""
        node = self.producers.get(value.name)
        while node is not None and node.op == "Broadcast":
            value = node.inputs[0]
            node = self.producers.get(value.name)
        return value

    def _move(self, value: Value, perm: tuple[int, ...], to: Value) -> Value:
        """Take the node that moves axes: a Reshape where none with numbers passes another."""
        moving = [axis for axis in perm if value.shape[axis] != 1]
        if moving == sorted(moving):
            self.nodes.append(Node("Reshape", (value,), (to,)))
        else:
            self.nodes.append(Node("Transpose", (value,), (to,), (list(perm),)))
        return to

    def _constant(self, value: Value, form: Form) -> Value:
        key = (value.name, form)
        if key not in self._constants:
            array = self.graph.constants[value.name]
            array = array.reshape((1,) * (_rank(form) - array.ndim) + tuple(array.shape))
            shape = _shape(form, array.shape)
            turned = array.transpose([axis for axis in form if axis is not None]).reshape(shape)
            mx.eval(turned)
            made = self.fresh(shape, value.dtype)
            self.graph.constants[made.name] = turned
            self._constants[key] = made
        return self._constants[key]


def _shape(form: Form, traced: Sequence[int]) -> tuple[int, ...]:
    return tuple(1 if axis is None else traced[axis] for axis in form)


def _rank(form: Form) -> int:
    return sum(axis is not None for axis in form)


def _convolution(r: _Rewriting, node: Node) -> bool:
    if len(node.inputs[0].shape) != 4 or max(node.arguments[4]) > 1:
        return False
    inputs = (r.turned(node.inputs[0], PICTURE), *map(r.traced, node.inputs[1:]))
    r.convolutions[node.outputs[0].name] = len(r.nodes)
    r.emit(replace(node, op="PictureConvolution", inputs=inputs), PICTURE)
    return True


def _group_norm(r: _Rewriting, node: Node) -> bool:
    x, *affine = node.inputs
    is_torchs = node.options["pytorch_compatible"]
    if r.form(x) != PICTURE or not is_torchs or not _are_known(r, affine):
        return False
    inputs = (r.turned(x, PICTURE), *affine)
    options = dict(node.options) | {"half": r.with_rows}
    r.emit(replace(node, op="PictureGroupNorm", inputs=inputs, options=options), PICTURE)
    return True


def _upsample(r: _Rewriting, node: Node) -> bool:
    inputs = (r.turned(node.inputs[0], PICTURE),)
    r.emit(replace(node, op="PictureUpsample", inputs=inputs), PICTURE)
    return True


def _elementwise(r: _Rewriting, node: Node) -> bool:
    output = node.outputs[0]
    forms = {f for v in node.inputs if v.shape == output.shape and (f := r.form(v)) is not None}
    if len(forms) != 1:
        return False
    form = forms.pop()
    if node.op == "Add" and form == PICTURE and _biased(r, node):
        return True
    inputs = tuple(r.operand(v, form) for v in node.inputs)
    r.emit(replace(node, inputs=inputs), form)
    return True


def _biased(r: _Rewriting, node: Node) -> bool:
    """What is added to each channel of a convolution is its bias."""
    for x, other in (node.inputs, node.inputs[::-1]):
        bias, place = r.base(other), r.convolutions.get(x.name)
        if place is None or r.uses[x.name] != 1:
            continue
        if bias.name in r.graph.constants and bias.shape == x.shape[-1:]:
            last = r.nodes[place]
            made = r.turned(x, PICTURE)
            r.nodes[place] = replace(last, inputs=(*last.inputs, bias))
            r.is_there(node.outputs[0], made, PICTURE)
            return True
    return False


def _concatenate(r: _Rewriting, node: Node) -> bool:
    form = next((f for v in node.inputs if (f := r.form(v)) is not None), None)
    if form is None:
        return False
    inputs = tuple(r.turned(v, form) for v in node.inputs)
    axis = node.arguments[0] % _rank(form)
    r.emit(replace(node, inputs=inputs, arguments=(form.index(axis),)), form)
    return True


def _split(r: _Rewriting, node: Node) -> bool:
    x, form = node.inputs[0], r.form(node.inputs[0])
    if form is None:
        return False
    indices, axis = node.arguments
    arguments = (indices, form.index(axis % _rank(form)))
    r.emit(replace(node, inputs=(r.turned(x, form),), arguments=arguments), form)
    return True


def _pad(r: _Rewriting, node: Node) -> bool:
    x, value = node.inputs
    form = r.form(x)
    if form is None or value.name not in r.graph.constants:
        return False
    axes, low, high = node.arguments
    arguments = ([form.index(axis) for axis in axes], low, high)
    r.emit(replace(node, inputs=(r.turned(x, form), value), arguments=arguments), form)
    return True


def _transpose(r: _Rewriting, node: Node) -> bool:
    """Where the model itself turns a picture, or a list of rows, there is nothing to compute."""
    x, output, perm = node.inputs[0], node.outputs[0], list(node.arguments[0])
    if perm == [0, 3, 1, 2] and r.form(x) == PICTURE:
        r.aliases[output.name] = r.turned(x, PICTURE)
        return True
    if perm == [0, 2, 3, 1]:
        r.is_there(output, r.traced(x), PICTURE)
        return True
    if perm == [0, 2, 1] and r.with_rows:
        B, C, T = x.shape
        before = r.producers.get(x.name)
        if before is not None and before.op == "Reshape" and before.inputs[0].shape == (B, C, 1, T):
            x = before.inputs[0]
        r.is_there(output, r.reshaped(r.traced(x), (B, C, 1, T)), ROWS)
        return True
    return False


def _reshape(r: _Rewriting, node: Node) -> bool:
    """A picture as a list of its rows, and back."""
    x, output = node.inputs[0], node.outputs[0]
    form = r.form(x)
    if not r.with_rows or form is None or x.shape[-1:] != output.shape[-1:]:
        return False
    to = {(PICTURE, 3): ROWS, (ROWS, 4): PICTURE}.get((form, len(output.shape)))
    if to is None or x.shape[0] != output.shape[0]:
        return False
    shape = _shape(to, output.shape)
    r.is_there(output, r.reshaped(r.turned(x, form), shape), to)
    return True


def _linear(r: _Rewriting, node: Node) -> bool:
    form = r.form(node.inputs[0])
    if form is None or not _are_known(r, node.inputs[1:]):
        return False
    inputs = (r.turned(node.inputs[0], form), *node.inputs[1:])
    r.emit(replace(node, op="RowsLinear", inputs=inputs), form)
    return True


def _layer_norm(r: _Rewriting, node: Node) -> bool:
    x, *affine = node.inputs
    if r.form(x) != ROWS or not _are_known(r, affine):
        return False
    inputs = (r.turned(x, ROWS), *affine)
    r.emit(replace(node, op="RowsLayerNorm", inputs=inputs), ROWS)
    return True


def _attention(r: _Rewriting, node: Node) -> bool:
    """Heads that are cut from rows, attended to one by one, and joined again."""
    named = node.operands()
    joined = _after_heads(r, node.outputs[0])
    if not r.with_rows or joined is None or set(named) != {"q", "k", "v"} or "mask" in node.options:
        return False
    sources = [source for v in named.values() if (source := _before_heads(r, v)) is not None]
    B, H, T, D = node.outputs[0].shape
    if [r.form(source) for source in sources] != [ROWS] * 3 or named["k"].shape[1] != H:
        return False
    inputs = tuple(r.turned(source, ROWS) for source in sources)
    made = r.fresh((B, H * D, 1, T), node.outputs[0].dtype)
    options = dict(node.options) | {"heads": H, "chunk": r.chunk}
    new = replace(node, op="RowsAttention", inputs=inputs, outputs=(made,), options=options)
    r.nodes.append(new)
    r.is_there(joined[-1], made, ROWS)
    r.done.update(value.name for value in joined)
    return True


def _after_heads(r: _Rewriting, heads: Value) -> list[Value] | None:
    """Return what joins heads [B, H, T, D] to [B, T, H D]: turned, then reshaped; or None."""
    values = []
    value = heads
    for op in ("Transpose", "Reshape"):
        node = r.readers.get(value.name)
        if node is None or node.op != op or r.uses[value.name] != 1:
            return None
        if op == "Transpose" and list(node.arguments[0]) != [0, 2, 1, 3]:
            return None
        value = node.outputs[0]
        values.append(value)
    B, H, T, D = heads.shape
    return values if value.shape == (B, T, H * D) else None


def _before_heads(r: _Rewriting, value: Value) -> Value | None:
    """Return the rows [B, T, H D] that heads [B, H, T, D] were cut from, or None."""
    node = r.producers.get(value.name)
    while node is not None and node.op == "AsType":
        node = r.producers.get(node.inputs[0].name)
    if node is None or node.op != "Transpose" or list(node.arguments[0]) != [0, 2, 1, 3]:
        return None
    before = r.producers.get(node.inputs[0].name)
    if before is None or before.op != "Reshape":
        return None
    source, (B, H, T, D) = before.inputs[0], value.shape
    return source if source.shape == (B, T, H * D) else None


def _are_known(r: _Rewriting, values: Sequence[Value]) -> bool:
    return all(value.name in r.graph.constants for value in values)


_Handler = Callable[[_Rewriting, Node], bool]
_HANDLERS: Mapping[str, _Handler] = dict.fromkeys(_UNARY | _BINARY, _elementwise) | {
    "Convolution": _convolution,
    "GroupNorm": _group_norm,
    "UpsampleNearest": _upsample,
    "Concatenate": _concatenate,
    "Split": _split,
    "Pad": _pad,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Linear": _linear,
    "LayerNorm": _layer_norm,
    "ScaledDotProductAttention": _attention,
}
