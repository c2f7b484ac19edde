"""Matrix products, with plain and quantised weights."""

from typing import TYPE_CHECKING

import numpy as np
from coremltools.converters.mil import Builder as mb

from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


@lowers("Matmul")
def matmul(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """[..., M, K] @ [..., K, N] -> [..., M, N]."""
    return mb.matmul(x=x, y=y)


@lowers("Linear")
def linear(lowering: "Lowering", node: Node, x: Var, weight: Var, bias: Var | None = None) -> Var:
    """[..., in] and [out, in] -> [..., out]: made of Matmul by passes/linear.py."""
    return (
        mb.linear(x=x, weight=weight) if bias is None else mb.linear(x=x, weight=weight, bias=bias)
    )


@lowers("AddMM")
def addmm(lowering: "Lowering", node: Node, x: Var, y: Var, z: Var) -> Var:
    """Return alpha x @ y + beta z."""
    alpha, beta = node.arguments
    product = mb.matmul(x=x, y=y)
    kind = np.float16 if lowering.mil_type(node.outputs[0]) == "fp16" else np.float32
    if alpha != 1:
        product = mb.mul(x=product, y=kind(alpha))
    if beta != 1:
        z = mb.mul(x=z, y=kind(beta))
    return mb.add(x=product, y=z)
