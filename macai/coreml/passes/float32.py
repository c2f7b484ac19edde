"""What stays float32 in a float16 program.

The sine or cosine of a large angle needs the angle exactly: in float16, t = 500 of a timestep
embedding is off by 2e-2. So everything such an angle is computed from stays float32, but for an
input that the function takes as float16: what it is given is rounded already.
"""

from macai.coreml.graph import Graph

_ANGLES = {"Sin", "Cos"}
# What mixes many values is no part of an angle's computation: the walk back ends there.
_ENDS = {
    "AddMM", "Convolution", "Linear", "Matmul", "PictureConvolution", "QuantizedMatmul",
    "RowsAttention", "RowsLinear", "ScaledDotProductAttention",
}  # fmt: skip


def keep_float32(graph: Graph) -> frozenset[str]:
    """Return the names of the values that lead to a Sin or Cos, and of these results."""
    kept: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op in _ANGLES:
            kept.update(v.name for v in (*node.inputs, *node.outputs) if v.is_float)
        elif node.op not in _ENDS and any(v.name in kept for v in node.outputs):
            kept.update(v.name for v in node.inputs if v.is_float)
    mixed = {v.name for node in graph.nodes if node.op in _ENDS for v in node.outputs}
    half = {v.name for v in graph.inputs if v.dtype == "float16"}
    return frozenset(kept - mixed - half)
