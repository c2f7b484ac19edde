"""Products with, and rows of, weights that MLX quantised: see carried.py.

nn.QuantizedEmbedding is captured whole by marks.py; a model that ties it to its head has one
weight for both.
"""

from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.carried import AFFINE_BITS, FLOAT_MODES, affine, microscaled
from macai.coreml.constexpr import expanded
from macai.coreml.graph import Node, Value
from macai.coreml.ops.linear import no_bias
from macai.coreml.ops.table import Var, lowers
from macai.coreml.stored import Stored

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering

# MLX's enumeration of quantisation modes.
MODES = ("affine", *FLOAT_MODES)


def _format(node: Node) -> tuple[int, str]:
    """Return the bits of a code, and the mode."""
    if node.op == "QuantizedEmbedding":
        return node.options["bits"], node.options["mode"]
    mode = node.arguments[2]
    return node.arguments[1], MODES[mode] if mode < len(MODES) else f"number {mode}"


def _supported(node: Node) -> str | None:
    bits, mode = _format(node)
    if mode not in MODES:
        return f"quantisation mode {mode}"
    if mode == "affine" and bits not in AFFINE_BITS:
        return f"{bits} bits"
    rank = len(node.inputs[1].shape)
    return None if rank == 2 else f"quantised weights of rank {rank}"


@lowers("QuantizedMatmul", accepts=_supported, operands=1)
def quantized_matmul(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[..., in] and a weight [out, in], or [in, out] if it is not transposed -> [..., out]."""
    weight = _weight(lowering, node)
    if node.arguments[3]:
        return mb.linear(x=x, weight=weight, bias=no_bias(lowering, node))
    return mb.matmul(x=x, y=weight)


@lowers("QuantizedEmbedding", accepts=_supported, operands=1)
def quantized_embedding(lowering: "Lowering", node: Node, indices: Var) -> Var:
    """Rows of a weight [rows, columns] at int32 indices [*I] -> [*I, columns]."""
    flat = mb.expand_dims(x=indices, axes=[0]) if indices.rank == 0 else indices
    rows = mb.gather(x=_weight(lowering, node), indices=flat, axis=0)
    return rows if indices.rank else mb.squeeze(x=rows, axes=[0])


def _weight(lowering: "Lowering", node: Node) -> Var:
    words, mil_type = node.inputs[1], lowering.mil_type(node.outputs[0])
    name = lowering.graph.weights.get(words.name, words.name)

    def make() -> Var:
        return expanded(lowering, _stored(lowering, node, mil_type), mil_type, name)

    return lowering.once(("quantised", words.name, mil_type), make)


def _stored(lowering: "Lowering", node: Node, mil_type: str) -> Stored:
    def known(value: Value) -> np.ndarray:
        array = lowering.array(value)
        if array is None:
            raise ValueError("its quantised weights are computed from the inputs")
        return array

    bits, mode = _format(node)
    words, scales, *biases = (known(v) for v in node.inputs[1:])
    if mode == "affine":
        return affine(words, scales, biases[0], bits, mil_type)
    return microscaled(words, scales, mode)
