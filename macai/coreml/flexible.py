"""A function whose inputs may have other sizes: one graph of several traces.

A trace has sizes as numbers. So there are several, of other sizes each, and what differs between
them has to be a sum of sizes and a constant: a dimension, an argument, an integer that Python
computed from shapes. Then it is that sum in the graph, with a symbol of sympy for each size, and
`mx.array(x.shape[1] + 1)` is what it says in every run. What depends on a size in another way is
refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from coremltools.converters.mil.mil import get_new_symbol

from macai.coreml.graph import Graph, Node, Value
from macai.coreml.trace import trace
from macai.errors import ExportError, UsageError
from macai.models.arrays import scalar

# Sizes to trace with, rather not what a model has as a width. Where a function takes another way
# for some of them (mlx-lm sorts what goes to experts from 64 entries on), others are tried.
_SAMPLES = (
    (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 7, 5, 3, 2),
    (7, 5, 3, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53),
    (97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size that is chosen at each call, from `least` to `most`.

    Axes with sizes of one name have the same size in each call.
    """

    name: str
    least: int = 1
    most: int


Flexible = Mapping[str, Mapping[int, Size]]
"""The sizes of some axes, by input."""


def trace_flexible(
    fn: Callable[..., Any],
    inputs: Mapping[str, mx.array],
    states: Sequence[mx.array],
    flexible: Flexible,
    weights: nn.Module | None = None,
) -> Graph:
    """Trace `fn(*inputs, *states)` for all sizes: see trace.trace.

    Where Python code of the function looks at a size, what it does for a few of them stands for
    all: let what is exported be run with others, too.

    Raises:
        UsageError: a range is too narrow, or a name has two.
        ExportError: the function is another one for another size, or depends on one in a way that
            cannot be exported.
    """
    sizes = list(dict.fromkeys(size for axes in flexible.values() for size in axes.values()))
    if len({size.name for size in sizes}) < len(sizes):
        raise UsageError("two sizes have one name, and not one range")
    symbols = [_symbol(size.name) for size in sizes]
    problems = []
    for samples in _SAMPLES:
        points = _points(sizes, samples)
        if not points:
            continue
        graphs = [
            trace(fn, [*_resized(inputs, flexible, point), *states], weights) for point in points
        ]
        columns = [[point[size] for point in points] for size in sizes]
        try:
            return _joined(graphs, _Fit(symbols, columns))
        except ExportError as e:
            problems.append(e)
    if problems:
        raise problems[0]
    raise UsageError(
        "a size has too narrow a range: "
        + ", ".join(f"{s.name} {s.least}..{s.most}" for s in sizes),
        hint="a wider range, or a function for each size",
    )


@cache
def _symbol(name: str) -> Any:
    """Return the symbol of that name: coremltools makes it once."""
    return get_new_symbol(name)


def _points(sizes: Sequence[Size], samples: Sequence[int]) -> list[dict[Size, int]]:
    """Sizes to trace with: some, each of them changed, and all of them changed for a check.

    Empty, if there are not enough samples in a size's range.
    """
    free = list(samples)
    base: dict[Size, int] = {}
    other, check = dict(base), dict(base)
    for size in sizes:
        fitting = [n for n in free if size.least <= n <= size.most]
        if len(fitting) < 3:
            return []
        base[size], other[size], check[size] = fitting[:3]
        free = [n for n in free if n not in fitting[:3]]
    return [base, *(base | {size: other[size]} for size in sizes), check]


def _resized(
    inputs: Mapping[str, mx.array], flexible: Flexible, point: Mapping[Size, int]
) -> list[mx.array]:
    resized = []
    for label, array in inputs.items():
        shape = list(array.shape)
        for axis, size in flexible.get(label, {}).items():
            shape[axis] = point[size]
        resized.append(mx.zeros(shape, array.dtype))
    return resized


class _UnexplainedError(Exception):
    """Values of several traces that no sum of sizes explains."""


class _Fit:
    """Finds what values of several traces are in terms of the sizes.

    The first trace is the base; in each of the next, one size is another; the last is a check.
    """

    def __init__(self, symbols: list[Any], sizes: list[list[int]]) -> None:
        self._symbols, self._sizes = symbols, sizes
        self._sums: dict[tuple[int, ...], Any] = {}

    def __call__(self, values: Sequence[Any]) -> Any:
        """Return one value for all: the same, a sum of symbols, or such things in a sequence."""
        first = values[0]
        if all(type(v) is type(first) and v == first for v in values):
            return first
        if all(isinstance(v, tuple | list) and len(v) == len(first) for v in values):
            return type(first)(self(items) for items in zip(*values, strict=True))
        if not all(isinstance(v, int | float) and int(v) == v for v in values):
            raise _UnexplainedError
        numbers = tuple(int(v) for v in values)
        if numbers not in self._sums:
            self._sums[numbers] = self._sum(numbers)
        return self._sums[numbers]

    def _sum(self, values: tuple[int, ...]) -> Any:
        total: Any = values[0]
        for n, (symbol, sizes) in enumerate(zip(self._symbols, self._sizes, strict=True), 1):
            factor, rest = divmod(values[n] - values[0], sizes[n] - sizes[0])
            if rest:
                raise _UnexplainedError
            total = total + factor * (symbol - sizes[0])
        at_check = {
            symbol: sizes[-1] for symbol, sizes in zip(self._symbols, self._sizes, strict=True)
        }
        if total.subs(at_check) != values[-1]:
            raise _UnexplainedError
        return total


def _joined(graphs: list[Graph], fit: _Fit) -> Graph:
    first = graphs[0]
    for graph in graphs[1:]:
        _check_alike(first, graph)
    constants, numbers = {}, []
    for name, constant in first.constants.items():
        others = [g.constants[name] for g in graphs]
        if name in first.weights or all(_equal(constant, other) for other in others):
            constants[name] = constant
        else:
            numbers.append(_number(first, name, others, fit))
    nodes = [_node(nodes, fit) for nodes in zip(*(g.nodes for g in graphs), strict=True)]
    return Graph(
        [_value(values, fit) for values in zip(*(g.inputs for g in graphs), strict=True)],
        [_value(values, fit) for values in zip(*(g.outputs for g in graphs), strict=True)],
        constants,
        first.weights,
        [*numbers, *nodes],
    )


def _check_alike(a: Graph, b: Graph) -> None:
    """Refuse two graphs that are not the same operations on the same values."""
    for one, other in zip(a.nodes, b.nodes, strict=False):
        names = [[v.name for v in (*n.inputs, *n.outputs)] for n in (one, other)]
        if one.op != other.op or names[0] != names[1]:
            raise ExportError(
                f"for another size the function has another operation: {one}, and {other}",
                hint="let it do the same for every size, or export fixed sizes",
            )
    if len(a.nodes) != len(b.nodes) or a.constants.keys() != b.constants.keys():
        raise ExportError(
            f"for another size the function has {len(b.nodes)} operations, not {len(a.nodes)}",
            hint="let it do the same for every size, or export fixed sizes",
        )


def _equal(a: mx.array, b: mx.array) -> bool:
    return a is b or (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool(mx.array_equal(a, b, equal_nan=True).item())
    )


def _number(graph: Graph, name: str, values: list[mx.array], fit: _Fit) -> Node:
    """Return a Size node for an integer that Python computed from sizes."""
    first, dtype = values[0], str(values[0].dtype).rpartition(".")[2]
    is_one = all(v.size == 1 and v.shape == first.shape for v in values)
    if is_one and mx.issubdtype(first.dtype, mx.integer):
        try:
            total = fit([int(scalar(v.reshape(-1)[0])) for v in values])
        except _UnexplainedError:
            pass
        else:
            return Node("Size", (), (Value(name, tuple(first.shape), dtype),), (total,))
    what = f"{dtype} {list(first.shape)}"
    readers = (str(n) for n in graph.nodes if any(v.name == name for v in n.inputs))
    raise ExportError(
        f"a constant depends on a size: {what}, read by {next(readers, 'an output')}",
        hint="only whole numbers that are sums of sizes can: compute others in the function",
    )


def _node(nodes: Sequence[Node], fit: _Fit) -> Node:
    first = nodes[0]
    try:
        if any(n.options != first.options for n in nodes):
            raise _UnexplainedError
        return replace(
            first,
            inputs=tuple(_value(v, fit) for v in zip(*(n.inputs for n in nodes), strict=True)),
            outputs=tuple(_value(v, fit) for v in zip(*(n.outputs for n in nodes), strict=True)),
            arguments=fit([n.arguments for n in nodes]),
        )
    except _UnexplainedError as e:
        raise ExportError(
            f"no sum of sizes explains how this depends on one: {first}, {first.arguments}; for "
            f"others {nodes[-1]}, {nodes[-1].arguments}",
            hint="export fixed sizes",
        ) from e


def _value(values: Sequence[Value], fit: _Fit) -> Value:
    return replace(values[0], shape=fit([v.shape for v in values]))
