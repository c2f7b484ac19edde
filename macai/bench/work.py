"""How much work a function is: counted in its trace, so that no formula has to fit a model."""

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from macai.bench.figure import Work
from macai.coreml.graph import Node
from macai.coreml.trace import Function, trace

CACHED_BYTES = 64 << 20
"""Fewer bytes of weights may stay in a processor's caches: memory does not bound reading them."""
_PRODUCTS = ("Matmul", "AddMM", "QuantizedMatmul")


def work_of(fn: Function, inputs: Sequence[mx.array], weights: nn.Module) -> Work:
    """Return the work of one call: nothing is computed.

    Args:
        fn: Takes arrays and runs `weights`.
        inputs: Only their shapes matter.
        weights: Those it reads once; a matrix of which only rows are picked counts as nothing.
    """
    graph = trace(fn, inputs, weights)
    picked = {n.inputs[0].name for n in graph.nodes if n.op == "Gather"}
    used = {v.name for n in graph.nodes if n.op != "Gather" for v in n.inputs}
    read = [
        array.nbytes
        for name, array in graph.constants.items()
        if name in graph.weights and not (name in picked and name not in used)
    ]
    bytes_read = sum(read) if sum(read) > CACHED_BYTES else 0
    return Work(float(sum(map(_flops, graph.nodes))), float(bytes_read))


def _flops(node: Node) -> int:
    """Of a primitive, or of one that was marked whole; elementwise work is left out."""
    out = math.prod(node.outputs[0].shape)
    if node.op in _PRODUCTS:
        return 2 * out * node.inputs[0].shape[-1]
    if node.op == "Convolution":
        weight = node.inputs[1].shape  # [O, ..., I]
        return 2 * out * math.prod(weight[1:])
    if node.op == "ScaledDotProductAttention":
        q, k, v = (node.operands()[name].shape for name in "qkv")
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    return 0
