"""Find activations that Core ML has as one op.

    Sigmoid(x) * x                                   ->    SiLU(x)
    x * (1 + Erf(x / sqrt 2)) / 2                    ->    GELU[EXACT](x)
    0.5 * x * (1 + Tanh(c * (x + 0.044715 x^3)))     ->    GELU[TANH_APPROXIMATION](x)

Only where the parts are used nowhere else: they would be computed twice.
"""

import math
from dataclasses import replace

from macai.coreml.graph import Graph, Node, Value
from macai.models.arrays import scalar

_TANH_SCALE = math.sqrt(2 / math.pi)


def activations(graph: Graph) -> None:
    """Replace the products that end such a pattern, in place."""
    match = _Matcher(graph)
    nodes = []
    for node in graph.nodes:
        if (x := match.silu(node)) is not None:
            node = replace(node, op="SiLU", inputs=(x,), arguments=())
        elif (x := match.exact_gelu(node)) is not None:
            node = replace(node, op="GELU", inputs=(x,), arguments=(), options={"mode": "EXACT"})
        elif (x := match.tanh_gelu(node)) is not None:
            options = {"mode": "TANH_APPROXIMATION"}
            node = replace(node, op="GELU", inputs=(x,), arguments=(), options=options)
        nodes.append(node)
    graph.nodes = nodes


class _Matcher:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._producers = graph.producers()
        self._uses = graph.uses()

    def silu(self, node: Node) -> Value | None:
        if node.op != "Multiply":
            return None
        for gate, x in (node.inputs, node.inputs[::-1]):
            made = self._only(gate, "Sigmoid")
            if made is not None and made.inputs[0] == x:
                return x
        return None

    def exact_gelu(self, node: Node) -> Value | None:
        """Match x * (1 + erf(x / sqrt 2)) / 2, as mlx.nn.gelu traces."""
        if node.op != "Divide" or not self._is(node.inputs[1], 2):
            return None
        product = self._only(node.inputs[0], "Multiply")
        if product is None:
            return None
        for x, factor in (product.inputs, product.inputs[::-1]):
            erf = self._plus_one(factor, "Erf")
            inner = erf and self._only(erf.inputs[0], "Divide")
            if inner and inner.inputs[0] == x and self._is(inner.inputs[1], math.sqrt(2)):
                return x
        return None

    def tanh_gelu(self, node: Node) -> Value | None:
        """Match what mlx.nn.gelu_approx traces: see above."""
        if node.op != "Multiply":
            return None
        for half, factor in (node.inputs, node.inputs[::-1]):
            halved, tanh = self._only(half, "Multiply"), self._plus_one(factor, "Tanh")
            scaled = tanh and self._only(tanh.inputs[0], "Multiply")
            x = halved and self._other(halved, 0.5)
            cubic = scaled and self._other(scaled, _TANH_SCALE)
            if x and cubic and self._cubic(cubic, x):
                return x
        return None

    def _cubic(self, value: Value, x: Value) -> bool:
        total = self._only(value, "Add")
        if total is None or x not in total.inputs:
            return False
        rest = total.inputs[1] if total.inputs[0] == x else total.inputs[0]
        scaled = self._only(rest, "Multiply")
        power = scaled and self._other(scaled, 0.044715)
        cube = power and self._only(power, "Power")
        return bool(cube and cube.inputs[0] == x and self._is(cube.inputs[1], 3))

    def _plus_one(self, value: Value, op: str) -> Node | None:
        total = self._only(value, "Add")
        rest = total and self._other(total, 1)
        return self._only(rest, op) if rest else None

    def _other(self, node: Node, number: float) -> Value | None:
        """The operand beside the one that is `number`."""
        for a, b in (node.inputs, node.inputs[::-1]):
            if self._is(a, number):
                return b
        return None

    def _only(self, value: Value, op: str) -> Node | None:
        """The node that makes `value`, if it is an `op` and nothing else reads the value."""
        node = self._producers.get(value.name)
        return node if node and node.op == op and self._uses[value.name] == 1 else None

    def _is(self, value: Value, number: float) -> bool:
        """Whether it is the constant `number` everywhere, to the precision of its type."""
        node = self._producers.get(value.name)
        while node is not None and node.op == "Broadcast":
            value = node.inputs[0]
            node = self._producers.get(value.name)
        constant = self._graph.constants.get(value.name)
        if constant is None or not value.is_float:
            return False
        flat = constant.reshape(-1)
        if flat.size > 1 and not bool((flat == flat[0]).all().item()):
            return False
        return abs(scalar(flat[0]) - number) <= 1e-2 * abs(number)
