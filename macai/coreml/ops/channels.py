"""Channels on axis 1, positions last, as passes/channels_first.py makes it for the Neural Engine.

The forms are those of Apple's ml-ane-transformers: products as 1x1 convolutions, attention a head
at a time, nothing of rank 5, and no float32, which the Neural Engine does not have.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.constexpr import expanded
from macai.coreml.graph import Node, Value
from macai.coreml.ops.attention import additive
from macai.coreml.ops.rope import Rotation, cos_and_sin, one_offset, rotation_of
from macai.coreml.ops.table import Var, lowers, number_like

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering

# A wider convolution is not for the Neural Engine: see the lint's rule wide-layer.
WIDEST = 16384
# What a masked score is lowered by, as in ml-ane-transformers: exp of it is 0 in float16.
_HIDDEN = 1e4
# Below it a float16 is not normal, and a division by it may overflow.
_SMALLEST = 2.0**-14


@lowers("Conv1x1", operands=1)
def conv1x1(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[1, in, 1, T] and [out, in] -> [1, out, 1, T]; a wide layer in parts of 16,384 at most."""
    weight, *bias = node.inputs[1:]
    kind = lowering.mil_type(node.outputs[0])
    whole = _known(lowering, bias[0]) if bias else None
    parts = []
    for rows, part in _parts(lowering, weight, kind):
        given = {} if whole is None else {"bias": lowering.const(whole[slice(*rows)], kind)}
        parts.append(mb.conv(x=x, weight=part, **given))
    return parts[0] if len(parts) == 1 else mb.concat(values=parts, axis=1)


def _parts(lowering: "Lowering", weight: Value, kind: str) -> Iterator[tuple[tuple[int, int], Var]]:
    """Yield which rows of a weight a convolution has, and these, [rows, in, 1, 1]."""
    array, stored = _known(lowering, weight), lowering.stored(weight)
    path = lowering.graph.weights.get(weight.name, "")
    step = 1 if stored is None else stored.row_step
    size = WIDEST // step * step
    for begin in range(0, len(array), size):
        rows = begin, min(begin + size, len(array))
        name = path if rows == (0, len(array)) else path and f"{path}.rows_{begin}"
        if stored is None:
            yield rows, lowering.const(array[slice(*rows), :, None, None], kind, name=name)
        else:
            yield rows, expanded(lowering, stored.rows(*rows).with_axes(2), kind, name)


def _known(lowering: "Lowering", value: Value) -> np.ndarray:
    array = lowering.array(value)
    assert array is not None  # passes/linear.py asks for constants
    return array


@lowers("PlainTake", operands=0)
def plain_take(lowering: "Lowering", node: Node) -> Var:
    """Rows of a weight that is stored in full, though with the values of its compressed form.

    Compressed embeddings gave wrong numbers on iOS 26 (executorch#15936); a head that is tied to
    one may be compressed.
    """
    table, indices = node.inputs
    kind, stored = lowering.mil_type(table), lowering.stored(table)
    path = lowering.graph.weights[table.name]
    if stored is None:
        rows = lowering.loose(table)
    else:
        rows = lowering.const(stored.dense(kind), kind, name=f"{path}.rows")
    return mb.gather(x=rows, indices=lowering.var(indices), axis=0)


@lowers("Heads")
def heads(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[1, H D, 1, T] -> [1, D, H, T]."""
    _, D, H, _ = node.outputs[0].shape
    if H == 1:
        return x
    return mb.concat(values=mb.split(x=x, split_sizes=[D] * H, axis=1), axis=2)


@lowers("JoinHeads")
def join_heads(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[1, D, H, T] -> [1, H D, 1, T]."""
    H = node.inputs[0].shape[2]
    if H == 1:
        return x
    if x.op.op_type == "concat" and len(x.op.values) == H:  # attention's heads, one by one
        return mb.concat(values=x.op.values, axis=1)
    return mb.concat(values=mb.split(x=x, num_splits=H, axis=2), axis=1)


@lowers("ChannelRMSNorm")
def rms_norm(lowering: "Lowering", node: Node, x: Var, weight: Var | None = None) -> Var:
    """[1, C, ...] over C, weight [1, C, 1, 1].

    Divided by the largest value first: squares are 1 at most then, and float16 does.
    """
    largest = mb.reduce_max(x=mb.abs(x=x), axes=[1], keep_dims=True)
    largest = mb.maximum(x=largest, y=number_like(x, _SMALLEST))
    scaled = mb.real_div(x=x, y=largest)
    mean = mb.reduce_mean(x=mb.square(x=scaled), axes=[1], keep_dims=True)
    # The root of epsilon is divided, not epsilon: a square of `largest` would leave float16.
    root = mb.real_div(x=number_like(x, node.options["eps"] ** 0.5), y=largest)
    total = mb.add(x=mean, y=mb.square(x=root))
    normal = mb.mul(x=scaled, y=mb.rsqrt(x=total, epsilon=number_like(x, 0)))
    return normal if weight is None else mb.mul(x=normal, y=weight)


@lowers("ChannelLayerNorm")
def layer_norm(lowering: "Lowering", node: Node, x: Var, *affine: Var) -> Var:
    """[1, C, ...] over C, weight and bias [1, C, 1, 1]."""
    named = dict(zip(node.operands(), (x, *affine), strict=True))
    result = mb.layer_norm(x=x, axes=[1], epsilon=number_like(x, node.options["eps"]))
    if "weight" in named:
        result = mb.mul(x=result, y=named["weight"])
    return mb.add(x=result, y=named["bias"]) if "bias" in named else result


@lowers("ChannelRoPE", accepts=one_offset, operands=1)
def rope(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[1, D, H, T]: the first `dims` of D are turned by position."""
    rotation = rotation_of(lowering, node)
    _, D, _, T = node.inputs[0].shape
    kind = lowering.mil_type(node.outputs[0])
    pair = cos_and_sin(lowering, node, rotation, T)
    cos, sin = (lowering.once(("columns", v.name), partial(_columns, v)) for v in pair)
    head, rest = x, None
    if rotation.dims < D:
        head, rest = mb.split(x=x, split_sizes=[rotation.dims, D - rotation.dims], axis=1)
    turned = mb.add(
        x=mb.mul(x=head, y=cos), y=mb.mul(x=_swapped(lowering, head, rotation, kind), y=sin)
    )
    return turned if rest is None else mb.concat(values=[turned, rest], axis=1)


def _columns(rows: Var) -> Var:
    """[T, D] -> [1, D, 1, T]."""
    T, D = rows.shape
    if rows.val is not None:
        return mb.const(val=np.ascontiguousarray(rows.val.T[None, :, None]))
    turned = rows if T == 1 else mb.transpose(x=rows, perm=[1, 0])
    return mb.reshape(x=turned, shape=[1, D, 1, T])


def _swapped(lowering: "Lowering", x: Var, rotation: Rotation, kind: str) -> Var:
    """Each channel's partner in its pair: the other half, or the neighbour."""
    if not rotation.traditional:
        return mb.concat(values=mb.split(x=x, num_splits=2, axis=1)[::-1], axis=1)
    # Taking every second channel needs a fifth dimension to put them back; a product does not.
    order = np.arange(rotation.dims).reshape(-1, 2)[:, ::-1].reshape(-1)
    swap = np.eye(rotation.dims)[order][..., None, None]
    weight = lowering.once(("swap", rotation.dims, kind), lambda: lowering.const(swap, kind))
    return mb.conv(x=x, weight=weight)


@lowers("ChannelAttention", casts=False, operands=3)
def attention(lowering: "Lowering", node: Node, q: Var, k: Var, v: Var) -> Var:
    """Attend a head at a time: q [1, D, H, T], k and v [1, KV, S, D] -> [1, D, H, T].

    bchq,bkhc->bkhq and bkhq,bchk->bchq of ml-ane-transformers; MIL's einsum has both as one.
    """
    kind = lowering.mil_type(node.outputs[0])
    q, k, v = (lowering.cast(var, kind) for var in (q, k, v))
    _, _, H, T = node.inputs[0].shape
    _, KV, S, _ = node.inputs[1].shape
    q = mb.mul(x=q, y=number_like(q, node.options["scale"]))
    queries = _axis_2(q, H)
    keys = _axis_2(mb.transpose(x=k, perm=[0, 2, 1, 3]), KV)
    values = _axis_2(mb.transpose(x=v, perm=[0, 3, 1, 2]), KV)
    bias = _bias(lowering, node, kind, (T, S))
    results = []
    for number, query in enumerate(queries):
        group = number * KV // H
        scores = mb.einsum(values=[keys[group], query], equation=_EQUATION)
        if bias is not None:
            scores = mb.add(x=scores, y=bias)
        weights = mb.softmax(x=scores, axis=1)
        results.append(mb.einsum(values=[values[group], weights], equation=_EQUATION))
    return results[0] if H == 1 else mb.concat(values=results, axis=2)


_EQUATION = "nchw,nwhu->nchu"


def _axis_2(x: Var, count: int) -> list[Var]:
    return [x] if count == 1 else list(mb.split(x=x, num_splits=count, axis=2))


def _bias(lowering: "Lowering", node: Node, kind: str, sizes: tuple[int, int]) -> Var | None:
    """What is added to the scores of every head, [1, S, 1, T or 1], or None."""
    T, S = sizes
    if node.options.get("mask") == "causal":
        hidden = np.arange(S)[:, None] > np.arange(S - T, S)
        whole = -_HIDDEN * hidden[None, :, None]
        return lowering.once(("causal columns", T, S, kind), lambda: lowering.const(whole, kind))
    mask = node.operand("mask")
    if mask is None:
        return None
    return lowering.once(
        ("mask columns", mask.name, kind),
        lambda: _mask_columns(additive(lowering, lowering.loose(mask), kind, _HIDDEN)),
    )


def _mask_columns(mask: Var) -> Var:
    """[..., T or 1, S] -> [1, S, 1, T or 1]."""
    T, S = mask.shape[-2:] if mask.rank > 1 else (1, mask.shape[-1])
    if T == 1:
        return mb.reshape(x=mask, shape=[1, S, 1, 1])
    flat = mask if mask.rank == 2 else mb.reshape(x=mask, shape=[T, S])
    return mb.reshape(x=mb.transpose(x=flat, perm=[1, 0]), shape=[1, S, 1, T])
