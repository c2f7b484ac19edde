"""A graph cut into several that are run one after the other, by what each keeps in a state.

    inputs -> graph -> outputs    ->    inputs -> part -> hiddenOut; hiddenIn, inputs -> part -> ...

A cut is where a single value is all that is needed of what came before: a transformer's residual
stream, between its blocks. What follows from small inputs alone, such as masks, is computed again
in each part rather than handed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from macai.coreml.graph import Graph, Node, Value
from macai.coreml.states import state_chain
from macai.errors import ExportError

HIDDEN_IN, HIDDEN_OUT = "hiddenIn", "hiddenOut"
_Place = int


@dataclass(frozen=True, slots=True)
class Part:
    """One of the graphs.

    Attributes:
        graph: Its inputs are `inputs`, then the state; its outputs likewise.
        inputs: Names of the inputs that are no state; HIDDEN_IN is first, but in the first part.
        outputs: Names of the outputs: HIDDEN_OUT but for the last part.
    """

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut(
    graph: Graph, inputs: Sequence[str], outputs: Sequence[str], *, recomputed: Sequence[str]
) -> list[Part]:
    """Return a part for each state, in order.

    Args:
        graph: Its inputs are `inputs`, then the states; its outputs `outputs`, then the states.
        inputs: Names of the inputs that are no states.
        outputs: Names of the outputs that are no states.
        recomputed: Names of the inputs that are small: what follows from them and constants alone
            is computed in each part that needs it.

    Raises:
        ExportError: between two states there is no place where one value is all that is needed.
    """
    named = dict(zip(inputs, graph.inputs, strict=False))
    states = graph.inputs[len(inputs) :]
    finals = graph.outputs[len(outputs) :]
    cheap = _follows(graph, [named[name] for name in recomputed])
    crossings = _crossings(graph, cheap, states, finals)
    ends = [_last_write(graph, s, f) for s, f in zip(states, finals, strict=True)]
    begins = [_first_use(graph, state) for state in states]
    places = []
    for number in range(len(states) - 1):
        found = [p for p in crossings if ends[number] < p <= begins[number + 1]]
        if not found:
            raise ExportError(
                f"this model cannot be divided after part {number + 1} of {len(states)}: more than "
                "one value is handed on there",
                hint="export it with --chunks 1",
            )
        places.append(found[-1])
    parts = []
    for number, state in enumerate(states):
        begin = places[number - 1] if number else 0
        end = places[number] if number < len(places) else len(graph.nodes)
        nodes = [n for p, n in enumerate(graph.nodes) if begin <= p < end or _is_cheap(n, cheap)]
        is_last = number == len(places)
        results = list(graph.outputs[: len(outputs)]) if is_last else [crossings[end]]
        part = Graph(
            [], [*results, finals[number]], dict(graph.constants), dict(graph.weights), nodes
        )
        part.drop_unused()
        own = {HIDDEN_IN: crossings[begin]} if number else {}
        used = part.uses()
        own |= {label: value for label, value in named.items() if used.get(value.name)}
        part.inputs = [*own.values(), state]
        parts.append(Part(part, tuple(own), tuple(outputs) if is_last else (HIDDEN_OUT,)))
    return parts


def _follows(graph: Graph, inputs: Sequence[Value]) -> set[str]:
    """Return the names of what follows from `inputs`, and constants that are no weights."""
    names = {v.name for v in inputs} | (graph.constants.keys() - graph.weights.keys())
    for node in graph.nodes:
        if all(v.name in names for v in node.inputs):
            names.update(v.name for v in node.outputs)
    return names


def _is_cheap(node: Node, cheap: set[str]) -> bool:
    return all(v.name in cheap for v in node.outputs)


def _crossings(
    graph: Graph, cheap: set[str], states: Sequence[Value], finals: Sequence[Value]
) -> Mapping[_Place, Value]:
    """Return the one value that is computed before a node and needed from there on, by its place.

    States are no such values, nor is what is cheap; where there are several values, there is none.
    """
    kept = {v.name for v in states}
    for state, final in zip(states, finals, strict=True):
        kept.update(state_chain(graph, state, final))
    last: dict[str, int] = {v.name: len(graph.nodes) for v in graph.outputs}
    for place in range(len(graph.nodes) - 1, -1, -1):
        for value in graph.nodes[place].inputs:
            last.setdefault(value.name, place)
    live: dict[str, Value] = {
        v.name: v for v in graph.inputs if v.name not in cheap | kept and v.name in last
    }
    found = {}
    for place, node in enumerate(graph.nodes):
        live = {name: value for name, value in live.items() if last[name] >= place}
        if len(live) == 1 and (value := next(iter(live.values()))).is_float:
            found[place] = value
        for value in node.outputs:
            if value.name not in cheap | kept and value.name in last:
                live[value.name] = value
    return found


def _last_write(graph: Graph, state: Value, final: Value) -> _Place:
    """The last node that reads or writes a state."""
    names = {state.name, *state_chain(graph, state, final)}
    places = [p for p, n in enumerate(graph.nodes) if any(v.name in names for v in n.inputs)]
    return max(places, default=-1)


def _first_use(graph: Graph, state: Value) -> _Place:
    return min(p for p, n in enumerate(graph.nodes) if any(v.name == state.name for v in n.inputs))
