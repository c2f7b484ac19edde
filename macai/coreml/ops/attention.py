"""Attention, captured whole: see marks.py."""

import math
from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.graph import Node, Value
from macai.coreml.ops.rope import last_axis
from macai.coreml.ops.sizes import extents
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering

_HIDDEN = 3e4  # what a masked score is lowered by: exp of it is 0, and float16 holds it with room


@lowers("ScaledDotProductAttention", broadcasts=True, casts=False)
def attention(lowering: "Lowering", node: Node, *_: Var) -> Var:
    """Attend: q [B, H, T, D], k and v [B, KV, S, D] -> [B, H, T, D].

    Where H is a multiple of KV, the heads that share keys are folded into the length of q: keys and
    values are never copied.
    """
    named = node.operands()
    kind = lowering.mil_type(node.outputs[0])
    q, k, v = (lowering.cast(lowering.var(named[n]), kind) for n in "qkv")
    B, H, T, D = named["q"].shape
    KV, S = named["k"].shape[1:3]
    fold = H // KV
    bias = _bias(lowering, node, named, kind, (H, KV, T, S))
    if fold > 1:
        q = mb.reshape(x=q, shape=[B, KV, fold * T, D])
    scale = node.options["scale"]
    sinks = named.get("sinks")
    if lowering.settings.fused_attention and sinks is None:
        ratio = scale * math.sqrt(D)
        if abs(ratio - 1) > 1e-6:
            q = mb.mul(x=q, y=_number(kind, ratio))
        extra = {} if bias is None else {"attn_mask": bias}
        out = mb.scaled_dot_product_attention(query=q, key=k, value=v, **extra)
    else:
        out = _unfused(lowering, q, k, v, scale, bias, sinks, kind, (B, H, KV, T, S))
    shape = [B, H, T, named["v"].shape[-1]]
    return mb.reshape(x=out, shape=shape) if fold > 1 else out


def _unfused(
    lowering: "Lowering",
    q: Var,
    k: Var,
    v: Var,
    scale: float,
    bias: Var | None,
    sinks: Value | None,
    kind: str,
    sizes: tuple[int, ...],
) -> Var:
    """softmax(scale q k^T + bias) v, with a sink in each head's softmax that has no value."""
    B, H, KV, T, S = sizes
    scores = mb.matmul(x=mb.mul(x=q, y=_number(kind, scale)), y=k, transpose_y=True)
    if bias is not None:
        scores = mb.add(x=scores, y=bias)
    if sinks is not None:
        column = mb.reshape(x=lowering.cast(lowering.var(sinks), kind), shape=[1, KV, H // KV, 1])
        column = mb.tile(x=column, reps=extents(lowering, [B, 1, 1, T]))
        column = mb.reshape(x=column, shape=[B, KV, H // KV * T, 1])
        scores = mb.concat(values=[scores, column], axis=-1)
    weights = mb.softmax(x=scores, axis=-1)
    if sinks is not None:
        weights = last_axis(weights, 0, S)
    return mb.matmul(x=weights, y=v)


def _bias(
    lowering: "Lowering",
    node: Node,
    named: dict[str, Value],
    kind: str,
    sizes: tuple[int, int, int, int],
) -> Var | None:
    """The mask as what is added to the scores of the folded heads: [..., fold * T, S], or None."""
    H, KV, T, S = sizes
    if node.options.get("mask") == "causal":
        allowed = np.arange(S) <= np.arange(S - T, S)[:, None]
        hidden = np.tile(np.where(allowed, 0.0, -_HIDDEN), (H // KV, 1))
        return lowering.once(("causal", T, S, H // KV, kind), lambda: lowering.const(hidden, kind))
    mask = named.get("mask")
    if mask is None:
        return None
    bias = lowering.once(
        ("mask", mask.name, kind), lambda: additive(lowering, lowering.loose(mask), kind, _HIDDEN)
    )
    if H == KV:
        return bias
    return lowering.once(
        ("mask", mask.name, kind, H // KV, T), lambda: _folded(lowering, bias, sizes)
    )


def additive(lowering: "Lowering", mask: Var, kind: str, hidden: float) -> Var:
    """Return a mask as what is added to scores: where a bool is false, -`hidden`."""
    if mask.dtype.__name__ != "bool":
        return lowering.cast(mask, kind)
    number = mb.sub(x=mb.cast(x=mask, dtype=kind), y=_number(kind, 1))
    return mb.mul(x=number, y=_number(kind, hidden))


def _folded(lowering: "Lowering", bias: Var, sizes: tuple[int, int, int, int]) -> Var:
    """[..., H or 1, T or 1, S] -> the same for heads folded into T."""
    H, KV, T, _ = sizes
    shape = (1,) * (4 - bias.rank) + tuple(bias.shape)
    B, heads, rows = shape[0], shape[1], shape[2]
    if heads == 1:
        if rows == 1:
            return bias
        return mb.concat(values=[bias] * (H // KV), axis=-2)
    if rows != T:
        reps = extents(lowering, [1, 1, T, 1])
        bias = mb.tile(x=mb.reshape(x=bias, shape=list(shape)), reps=reps)
    return mb.reshape(x=bias, shape=[B, KV, H // KV * T, shape[3]])


def _number(kind: str, value: float) -> np.generic:
    return np.float16(value) if kind == "fp16" else np.float32(value)
