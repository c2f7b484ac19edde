"""Which values of a graph are versions of a state: what each write into a part of it gives."""

from collections.abc import Iterable

from macai.coreml.graph import Graph, Value

_WRITES = {"DynamicSliceUpdate", "SliceUpdate"}


def state_chain(graph: Graph, first: Value, last: Value) -> list[str]:
    """Return the names of the values from the first write into a state to the last, in order.

    Empty when `last` is not `first` with parts written over, one after another: then it is a new
    value of the whole state.
    """
    producers = graph.producers()
    chain: list[str] = []
    value = last
    while value.name != first.name:
        node = producers.get(value.name)
        if node is None or node.op not in _WRITES:
            return []
        chain.append(value.name)
        value = node.inputs[0]
    return chain[::-1]


def read_only(graph: Graph, places: Iterable[int], lasts: Iterable[Value]) -> set[str]:
    """Return the names of the states' values that come back as they came, and that something reads.

    What nothing reads has to be written, be it as it is: Core ML refuses a state without a use.

    Args:
        graph: The graph.
        places: Of each state's input among the graph's inputs.
        lasts: What each state is at the end.
    """
    uses = graph.uses()
    pairs = zip((graph.inputs[place] for place in places), lasts, strict=True)
    return {last.name for first, last in pairs if first.name == last.name and uses[last.name] > 1}
