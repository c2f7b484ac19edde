"""Which parts of a graph have no lowering: all of them are told at once."""

from macai.coreml.graph import Graph, Node
from macai.coreml.ops import OPS
from macai.errors import UnsupportedOpError


def check_supported(graph: Graph) -> None:
    """Raise UnsupportedOpError naming every kind of node that has no lowering."""
    missing: dict[str, list[Node]] = {}
    for node in graph.nodes:
        entry = OPS.get(node.op)
        if entry is None:
            reason: str | None = _UNKNOWN.get(node.op, "no lowering")
        else:
            reason = _shapes(node) or (entry.accepts and entry.accepts(node))
        if reason:
            missing.setdefault(f"{node.op}: {reason}", []).append(node)
    if missing:
        lines = [
            f"{what} ({len(nodes)}x, first {_place(nodes[0])})" for what, nodes in missing.items()
        ]
        raise UnsupportedOpError(
            "these primitives cannot be exported:\n  " + "\n  ".join(lines),
            hint="docs/ops.md lists what can",
        )


_UNKNOWN = {
    "FFT": "Core ML has no Fourier transform",
    "RandomBits": "random numbers; take them as an input",
    "View": "the bits of a number as another type",
}


def _shapes(node: Node) -> str | None:
    shapes = [v.shape for v in (*node.inputs, *node.outputs)]
    if any(0 in shape for shape in shapes):
        return "no elements, and Core ML has no such arrays"
    rank = max(map(len, shapes))
    return f"rank {rank}, and Core ML has at most 5" if rank > 5 else None


def _place(node: Node) -> str:
    return f"after {node.where}" if node.where else "near the inputs"
