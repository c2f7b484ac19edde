"""Pictures and rows with channels on axis 1, as passes/pictures_first.py makes them."""

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.graph import Node, Value
from macai.coreml.ops.table import Var, lowers, number_like

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


@lowers("PictureGroupNorm", operands=1)
def picture_group_norm(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, C, H, W], channels in groups that lie together; `half` computes in the result's type.

    Then a side of a picture is averaged before the channels of a group are: a mean of 40,000
    values is no sum for float16.
    """
    kind, half = lowering.mil_type(node.outputs[0]), node.options["half"]
    (B, C, H, W), groups = node.inputs[0].shape, node.options["num_groups"]
    eps = node.options["eps"]
    wide = x if half else lowering.cast(x, "fp32")
    wide = mb.reshape(x=wide, shape=[B, groups, C // groups, H * W])
    axes = [[3], [2]] if half else [[2, 3]]
    centred = mb.sub(x=wide, y=_mean(wide, axes))
    variance = _mean(mb.square(x=centred), axes)
    scale = mb.rsqrt(x=variance, epsilon=number_like(x, eps) if half else np.float32(eps))
    normal = mb.reshape(x=mb.mul(x=centred, y=scale), shape=[B, C, H, W])
    return _affine(lowering, node, lowering.cast(normal, kind))


def _mean(x: Var, axes: list[list[int]]) -> Var:
    for own in axes:
        x = mb.reduce_mean(x=x, axes=own, keep_dims=True)
    return x


@lowers("RowsLayerNorm", operands=1)
def rows_layer_norm(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, C, 1, T] over C, in the result's type."""
    normal = mb.layer_norm(x=x, axes=[1], epsilon=number_like(x, node.options["eps"]))
    return _affine(lowering, node, normal)


def _affine(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Scale and shift axis 1 by constants [C]."""
    named, kind = node.operands(), lowering.mil_type(node.outputs[0])
    for name, apply in (("weight", mb.mul), ("bias", mb.add)):
        if name in named:
            x = apply(x=x, y=_column(lowering, named[name], kind))
    return x


def _column(lowering: "Lowering", value: Value, kind: str) -> Var:
    """A constant [C] as [C, 1, 1]."""
    array, path = lowering.array(value), lowering.graph.weights.get(value.name, "")
    assert array is not None  # passes/pictures_first.py asks for constants
    return lowering.once(
        ("column", value.name, kind),
        lambda: lowering.const(array.reshape(-1, 1, 1), kind, name=path and f"{path}.column"),
    )


@lowers("RowsLinear", operands=1)
def rows_linear(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, in, ...] and [out, in], [out] bias -> [B, out, ...]: a convolution by 1x1."""
    weight, *bias = node.inputs[1:]
    kind = lowering.mil_type(node.outputs[0])
    array, path = lowering.array(weight), lowering.graph.weights.get(weight.name, "")
    assert array is not None  # passes/pictures_first.py asks for constants
    kernel = lowering.once(
        ("kernel", weight.name, kind),
        lambda: lowering.const(array[:, :, None, None], kind, name=path and f"{path}.kernel"),
    )
    more = {"bias": lowering.weight(bias[0], kind)} if bias else {}
    return mb.conv(x=x, weight=kernel, **more)


@lowers("RowsAttention")
def rows_attention(lowering: "Lowering", node: Node, q: Var, k: Var, v: Var) -> Var:
    """Attend a head at a time: q [B, H D, 1, T], k and v [B, H D, 1, S] -> [B, H D, 1, T].

    With the einsums that Core ML has, in their order of operands: nchw,nwhu->nchu. With `chunk`,
    for so many rows of q at a time (split_einsum_v2 of Apple's package).
    """
    H = node.options["heads"]
    q = mb.mul(x=q, y=number_like(q, node.options["scale"]))
    columns = mb.transpose(x=k, perm=[0, 3, 2, 1])  # [B, S, 1, H D]
    heads = zip(_pieces(q, H, 1), _pieces(columns, H, 3), _pieces(v, H, 1), strict=True)
    joined = [_head(*head, node.options["chunk"]) for head in heads]
    return joined[0] if H == 1 else mb.concat(values=joined, axis=1)


def _head(q: Var, k: Var, v: Var, chunk: int | None) -> Var:
    """Return one head: q [B, D, 1, T], k [B, S, 1, D], v [B, D, 1, S] -> [B, D, 1, T]."""
    T = q.shape[3]
    whole = chunk is None or chunk >= T
    parts = []
    for part in [q] if whole else _pieces(q, -(-T // chunk), 3, size=chunk):
        scores = mb.einsum(values=(k, part), equation="nchw,nwhu->nchu")  # [B, S, 1, T]
        weights = mb.softmax(x=scores, axis=1)
        parts.append(mb.einsum(values=(v, weights), equation="nchw,nwhu->nchu"))
    return parts[0] if whole else mb.concat(values=parts, axis=3)


def _pieces(x: Var, number: int, axis: int, size: int | None = None) -> list[Var]:
    """Cut an axis into pieces: slices, as Apple's package has them."""
    if number == 1:
        return [x]
    length = x.shape[axis]
    ends = [min(n * (size or length // number), length) for n in range(number + 1)]
    pieces = []
    for begin, end in pairwise(ends):
        first, shape = [0] * x.rank, list(x.shape)
        first[axis], shape[axis] = begin, end - begin
        pieces.append(mb.slice_by_size(x=x, begin=first, size=shape))
    return pieces
