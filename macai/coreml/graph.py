"""What a trace gives and passes rewrite: a flat graph of MLX primitives, each value typed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

FLOATS = frozenset({"float16", "bfloat16", "float32"})


@dataclass(frozen=True, slots=True)
class Value:
    """One array of the graph: a name that is assigned once, a shape, MLX's dtype by name.

    A size that only a run knows is a symbol of sympy, or a sum of them: see flexible.py.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {list(self.shape)}"

    @property
    def is_float(self) -> bool:
        """Whether it is float16, bfloat16 or float32."""
        return self.dtype in FLOATS


@dataclass(frozen=True, slots=True)
class Node:
    """One primitive, or one composite that was marked.

    Attributes:
        op: MLX's name of the primitive ("Matmul"), or of the composite ("RMSNorm").
        arguments: The primitive's parameters in MLX's order.
        options: A composite's parameters by the name they have in mlx.core.fast; "operands" names
            its inputs.
        where: The named weight last used on the way here, to say where in a model this is.
    """

    op: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def operands(self) -> dict[str, Value]:
        """Return a composite's inputs by name; those that were not given are not in it."""
        return dict(zip(self.options["operands"], self.inputs, strict=True))

    def operand(self, name: str) -> Value | None:
        """Return one input of a composite, or None if it was not given."""
        return self.operands().get(name)

    def __str__(self) -> str:
        ins = ", ".join(map(str, self.inputs))
        outs = ", ".join(map(str, self.outputs))
        near = f", after {self.where}" if self.where else ""
        return f"{outs} = {self.op}({ins}){near}"


@dataclass(slots=True)
class Graph:
    """A function's nodes in an order in which each value comes before its uses.

    Attributes:
        inputs: What a caller gives, states included.
        outputs: What a caller gets; an output may be an input, a constant, or come twice.
        constants: Arrays known now, by value name. Weights are among them.
        weights: The parameter path of each constant that has one.
        nodes: What is computed.
    """

    inputs: list[Value]
    outputs: list[Value]
    constants: dict[str, mx.array]
    weights: dict[str, str]
    nodes: list[Node]

    def producers(self) -> dict[str, Node]:
        """Return the node that assigns each value, by value name."""
        return {value.name: node for node in self.nodes for value in node.outputs}

    def uses(self) -> dict[str, int]:
        """Return how often each value is read, once more for each time it is an output."""
        count: dict[str, int] = {}
        for value in (*self.outputs, *(v for node in self.nodes for v in node.inputs)):
            count[value.name] = count.get(value.name, 0) + 1
        return count

    def rename(self, names: Mapping[str, Value]) -> None:
        """Read the value `names[n]` wherever `n` is read, in place; chains are followed."""

        def final(value: Value) -> Value:
            while value.name in names:
                value = names[value.name]
            return value

        self.nodes = [
            Node(n.op, tuple(map(final, n.inputs)), n.outputs, n.arguments, n.options, n.where)
            for n in self.nodes
        ]
        self.outputs = [final(v) for v in self.outputs]

    def drop_unused(self) -> None:
        """Remove nodes and constants that no output needs, in place."""
        needed = {v.name for v in self.outputs}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(v.name in needed for v in node.outputs):
                kept.append(node)
                needed.update(v.name for v in node.inputs)
        self.nodes = kept[::-1]
        self.constants = {n: c for n, c in self.constants.items() if n in needed}
        self.weights = {n: w for n, w in self.weights.items() if n in needed}


Pass = Callable[[Graph], None]


def apply(graph: Graph, passes: Iterable[Pass]) -> Graph:
    """Run each pass over the graph, in place, removing what is unused after each; return it."""
    for rewrite in passes:
        rewrite(graph)
        graph.drop_unused()
    return graph
