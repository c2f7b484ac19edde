"""Capture whole what MLX would trace as dozens of primitives: norms, RoPE, attention, 4-bit rows.

While `marking()` is on, each such function returns `mx.depends(its result, its operands)`. Values
do not change, so that unmodified models run as ever, but the trace has one `Depends` primitive
whose inputs are the result, the operands and a tag; `composites` makes the composite of it and the
primitives that computed the result go unused.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.coreml.graph import Graph, Node, Value
from macai.models.arrays import scalar

_TAG = 1_000_003  # tags count up from here, so that no other Depends is taken for a mark


@dataclass(slots=True)
class Marks:
    """What was marked, by tag: the composite's name, and its parameters that are not arrays."""

    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def mark(self, op: str, result: mx.array, operands: dict[str, Any], **options: Any) -> mx.array:
        """Return `result`, marked. An operand that is no array is an option; None is left out."""
        arrays = {k: v for k, v in operands.items() if isinstance(v, mx.array)}
        options |= {k: v for k, v in operands.items() if k not in arrays and v is not None}
        options["operands"] = tuple(arrays)
        self.seen.append((op, options))
        tag = mx.array(_TAG + len(self.seen) - 1, dtype=mx.int32)
        marked: mx.array = mx.depends([result], [*arrays.values(), tag])[0]
        return marked


@contextlib.contextmanager
def marking() -> Iterator[Marks]:
    """Mark composites while the context is open. Not for several threads at once.

    Nothing is compiled meanwhile: what was compiled before would be run as it was, without marks.
    """
    marks = Marks()
    patches = [
        (mx.fast, "rms_norm", _rms_norm),
        (mx.fast, "layer_norm", _layer_norm),
        (mx.fast, "rope", _rope),
        (mx.fast, "scaled_dot_product_attention", _attention),
        (nn.GroupNorm, "__call__", _group_norm),
        (nn.Upsample, "__call__", _upsample),
        (nn.QuantizedEmbedding, "__call__", _quantized_embedding),
        (nn.layers.pooling._Pool, "__call__", _pool),
        (mx, "contiguous", _contiguous),
    ]
    originals = [getattr(owner, name) for owner, name, _ in patches]
    try:
        for (owner, name, make), original in zip(patches, originals, strict=True):
            setattr(owner, name, make(marks, original))
        mx.disable_compile()
        yield marks
    finally:
        if "MLX_DISABLE_COMPILE" not in os.environ:
            mx.enable_compile()
        for (owner, name, _), original in zip(patches, originals, strict=True):
            setattr(owner, name, original)


def composites(graph: Graph, marks: Marks) -> None:
    """Replace each marked `Depends` by its composite, in place, and any other by its value."""
    names: dict[str, Value] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op != "Depends":
            nodes.append(node)
            continue
        tag = graph.constants.get(node.inputs[-1].name)
        found = _tagged(marks, tag)
        if found is None:
            names |= {o.name: i for o, i in zip(node.outputs, node.inputs, strict=False)}
            continue
        op, options = found
        nodes.append(Node(op, node.inputs[1:-1], node.outputs, (), options, node.where))
    graph.nodes = nodes
    graph.rename(names)


def _tagged(marks: Marks, tag: mx.array | None) -> tuple[str, dict[str, Any]] | None:
    if tag is None or tag.dtype != mx.int32 or tag.size != 1:
        return None
    index = int(scalar(tag)) - _TAG
    return marks.seen[index] if 0 <= index < len(marks.seen) else None


Original = Callable[..., mx.array]


def _rms_norm(marks: Marks, original: Original) -> Original:
    def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **stream: Any) -> mx.array:
        return marks.mark(
            "RMSNorm", original(x, weight, eps, **stream), {"x": x, "weight": weight}, eps=eps
        )

    return rms_norm


def _layer_norm(marks: Marks, original: Original) -> Original:
    def layer_norm(
        x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, **stream: Any
    ) -> mx.array:
        result = original(x, weight, bias, eps, **stream)
        return marks.mark("LayerNorm", result, {"x": x, "weight": weight, "bias": bias}, eps=eps)

    return layer_norm


def _rope(marks: Marks, original: Original) -> Original:
    def rope(
        a: mx.array,
        dims: int,
        *,
        traditional: bool,
        base: float | None,
        scale: float,
        offset: int | mx.array,
        freqs: mx.array | None = None,
        **stream: Any,
    ) -> mx.array:
        options = {"dims": dims, "traditional": traditional, "base": base, "scale": scale}
        result = original(a, offset=offset, freqs=freqs, **options, **stream)
        return marks.mark("RoPE", result, {"x": a, "offset": offset, "freqs": freqs}, **options)

    return rope


def _attention(marks: Marks, original: Original) -> Original:
    def scaled_dot_product_attention(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: str | mx.array | None = None,
        sinks: mx.array | None = None,
        **stream: Any,
    ) -> mx.array:
        result = original(q, k, v, scale=scale, mask=mask, sinks=sinks, **stream)
        operands = {"q": q, "k": k, "v": v, "mask": mask, "sinks": sinks}
        return marks.mark("ScaledDotProductAttention", result, operands, scale=scale)

    return scaled_dot_product_attention


def _group_norm(marks: Marks, original: Original) -> Original:
    def group_norm(self: nn.GroupNorm, x: mx.array) -> mx.array:
        affine = "weight" in self
        return marks.mark(
            "GroupNorm",
            original(self, x),
            {
                "x": x,
                "weight": self.weight if affine else None,
                "bias": self.bias if affine else None,
            },
            num_groups=self.num_groups,
            eps=self.eps,
            pytorch_compatible=self.pytorch_compatible,
        )

    return group_norm


def _upsample(marks: Marks, original: Original) -> Original:
    def upsample(self: nn.Upsample, x: mx.array) -> mx.array:
        result = original(self, x)
        if self.mode != "nearest" or x.ndim != 4:
            return result  # linear and cubic are sums of gathers: traced as they are
        return marks.mark("UpsampleNearest", result, {"x": x})

    return upsample


def _pool(marks: Marks, original: Original) -> Original:
    def pool(self: Any, x: mx.array) -> mx.array:
        is_max = isinstance(self, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d)
        return marks.mark(
            "MaxPool" if is_max else "AvgPool",
            original(self, x),
            {"x": x},
            kernel_sizes=tuple(self._kernel_size),
            strides=tuple(self._stride),
            pad=tuple(tuple(pair) for pair in self._padding),
        )

    return pool


def _contiguous(marks: Marks, original: Original) -> Original:
    def contiguous(a: mx.array, *_: Any, **__: Any) -> mx.array:
        return a  # of how values lie in memory; MLX cannot trace it

    return contiguous


def _quantized_embedding(marks: Marks, original: Original) -> Original:
    def quantized_embedding(self: nn.QuantizedEmbedding, x: mx.array) -> mx.array:
        if self.mode in ("affine", "mxfp4"):
            result = original(self, x)
        else:  # MLX cannot trace how it expands these, and the mark leaves it unused anyway
            result = mx.zeros((*x.shape, self.dims), mx.bfloat16)
        return marks.mark(
            "QuantizedEmbedding",
            result,
            {"x": x, "w": self.weight, "scales": self.scales, "biases": self.get("biases")},
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )

    return quantized_embedding
