"""Matrix products, with plain and quantised weights."""

from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.graph import Node, Value
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


@lowers("Matmul")
def matmul(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """[..., M, K] @ [..., K, N] -> [..., M, N], or @ [..., N, K] turned: see passes/turned.py."""
    return mb.matmul(x=x, y=y, transpose_y=bool(node.options.get("transpose_y")))


@lowers("Linear")
def linear(lowering: "Lowering", node: Node, x: Var, weight: Var, bias: Var | None = None) -> Var:
    """[..., in] and [out, in] -> [..., out]: made of Matmul by passes/linear.py."""
    if bias is None:
        bias = no_bias(lowering, node)
    return mb.linear(x=x, weight=weight, bias=bias)


def no_bias(lowering: "Lowering", node: Node) -> Var:
    """Return zeros [out], stored once: the builder would make new ones for each product."""
    out, kind = node.outputs[0].shape[-1], lowering.mil_type(node.outputs[0])
    return lowering.once(
        ("no bias", out, kind), lambda: lowering.const(np.zeros(out), kind, name=f"no_bias.{out}")
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


@lowers("GatherMM")
def gather_mm(lowering: "Lowering", node: Node, x: Var, y: Var, left: Var, right: Var) -> Var:
    """Multiply x [*, M, K] at left [*I] by y [*, K, N] at right [*I] -> [*I, M, N]."""
    return _gathered(lowering, node, x, y, left, right, transposed=False)


@lowers("GatherLinear")
def gather_linear(lowering: "Lowering", node: Node, x: Var, w: Var, left: Var, right: Var) -> Var:
    """GatherMM with weights [experts, out, in] as they are: made by passes/linear.py.

    The weights of the experts that a token goes to are copied for it: right, and slow.
    """
    return _gathered(lowering, node, x, w, left, right, transposed=True)


def _gathered(
    lowering: "Lowering",
    node: Node,
    x: Var,
    y: Var,
    left: Var,
    right: Var,
    *,
    transposed: bool,
) -> Var:
    first, second = (_matrices(var, n) for var, n in ((x, node.inputs[0]), (y, node.inputs[1])))
    chosen = _chosen(lowering, first, left, node.inputs[2])
    weights = _chosen(lowering, second, right, node.inputs[3])
    product = mb.matmul(x=chosen, y=weights, transpose_y=transposed)
    return mb.reshape(x=product, shape=list(node.outputs[0].shape))


def _matrices(var: Var, value: Value) -> Var:
    """[*, M, K] -> [n, M, K]."""
    if len(value.shape) == 3:
        return var
    return mb.reshape(x=var, shape=[-1, *value.shape[-2:]])


def _chosen(lowering: "Lowering", matrices: Var, indices: Var, value: Value) -> Var:
    known = lowering.array(value)
    count = matrices.shape[0]
    if known is not None and np.array_equal(known.reshape(-1), np.arange(count)):
        return matrices
    flat = mb.reshape(x=indices, shape=[-1])
    return mb.gather(x=matrices, indices=flat, axis=0)
