"""Convolutions: MLX holds channels last, Core ML first."""

from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


def _supported(node: Node) -> str | None:
    """A dilated input, as transposed convolutions have, goes with a stride of 1."""
    stride, low, _, dilation, input_dilation, _, _ = node.arguments
    if max(input_dilation) == 1:
        return None
    if max(stride) > 1:
        return "a stride and a dilated input at once"
    spread = [d * (k - 1) for d, k in zip(dilation, node.inputs[1].shape[1:-1], strict=True)]
    beyond = any(p > s for p, s in zip(low, spread, strict=True))
    return "more padding than the kernel reaches" if beyond else None


@lowers("Convolution", accepts=_supported, operands=1)
def convolution(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, *spatial, in] and [out, *kernel, in / groups] -> [B, *spatial, out], 1 to 3 of them.

    With a dilated input it is the transposed convolution of that stride.
    """
    n = len(node.arguments[0])
    first, last = [0, n + 1, *range(1, n + 1)], [0, *range(2, n + 2), 1]
    channels_first = mb.transpose(x=x, perm=first)
    if max(node.arguments[4]) > 1:
        y = _transposed(lowering, node, channels_first, [node.outputs[0].shape[i] for i in first])
    else:
        y = _plain(lowering, node, channels_first, first)
    return mb.transpose(x=y, perm=last)


@lowers("PictureConvolution", operands=1)
def picture_convolution(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, in, H, W] and [out, kh, kw, in / groups], [out] bias -> [B, out, h, w]."""
    return _plain(lowering, node, x, [0, 3, 1, 2])


def _plain(lowering: "Lowering", node: Node, x: Var, first: list[int]) -> Var:
    stride, low, high, dilation, _, groups, flip = node.arguments
    array = lowering.array(node.inputs[1])
    inner = range(1, len(stride) + 1)
    if array is None:
        kernel = lowering.cast(lowering.var(node.inputs[1]), lowering.mil_type(node.outputs[0]))
        kernel = mb.reverse(x=kernel, axes=list(inner)) if flip else kernel
        kernel = mb.transpose(x=kernel, perm=first)
    else:
        array = np.flip(array, axis=tuple(inner)) if flip else array
        kernel = _stored(lowering, node, np.moveaxis(array, -1, 1), "flipped" if flip else "first")
    kind = lowering.mil_type(node.outputs[0])
    bias = {} if len(node.inputs) == 2 else {"bias": lowering.weight(node.inputs[2], kind)}
    return mb.conv(
        x=x,
        weight=kernel,
        **bias,
        strides=list(stride),
        dilations=list(dilation),
        groups=groups,
        pad_type="custom",
        pad=[p for pair in zip(low, high, strict=True) for p in pair],
    )


def _transposed(lowering: "Lowering", node: Node, x: Var, shape: list[int]) -> Var:
    _, low, high, dilation, input_dilation, groups, flip = node.arguments
    array = lowering.array(node.inputs[1])
    if array is None:
        raise ValueError("the kernel of a transposed convolution is computed from the inputs")
    size = array.shape[1:-1]
    if not flip:  # MLX slides it over the spread input; what is flipped lies as MIL wants it
        array = np.flip(array, axis=tuple(range(1, array.ndim - 1)))
    # [out, *kernel, in / groups] to MIL's [in, out / groups, *kernel]
    out, per_group = array.shape[0] // groups, array.shape[-1]
    split = np.moveaxis(array.reshape(groups, out, *size, per_group), -1, 1)
    kernel = split.reshape(groups * per_group, out, *size)
    spread = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    sides = zip(spread, low, high, strict=True)
    return mb.conv_transpose(
        x=x,
        weight=_stored(lowering, node, kernel, "transposed"),
        strides=list(input_dilation),
        dilations=list(dilation),
        groups=groups,
        pad_type="custom",
        pad=[max(pad, 0) for s, before, after in sides for pad in (s - before, s - after)],
        output_shape=shape,
    )


def _stored(lowering: "Lowering", node: Node, array: np.ndarray, how: str) -> Var:
    path = lowering.graph.weights.get(node.inputs[1].name, "")
    return lowering.const(array, lowering.mil_type(node.outputs[0]), name=path and f"{path}.{how}")


@lowers("MaxPool", "AvgPool")
def pool(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, *spatial, C] -> [B, *spatial, C], 1 to 3 of them; an average counts its padding."""
    n = len(node.options["kernel_sizes"])
    sides = {
        "kernel_sizes": list(node.options["kernel_sizes"]),
        "strides": list(node.options["strides"]),
        "pad": [p for pair in node.options["pad"] for p in pair],
        "pad_type": "custom",
    }
    x = mb.transpose(x=x, perm=[0, n + 1, *range(1, n + 1)])
    if node.op == "MaxPool":
        y = mb.max_pool(x=x, **sides)
    else:
        y = mb.avg_pool(x=x, **sides, exclude_padding_from_average=False)
    return mb.transpose(x=y, perm=[0, *range(2, n + 2), 1])


@lowers("UpsampleNearest")
def upsample_nearest(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, H, W, C] -> [B, s H, s W, C]."""
    sizes = node.outputs[0].shape[1:3], node.inputs[0].shape[1:3]
    y = _upsampled(mb.transpose(x=x, perm=[0, 3, 1, 2]), *sizes)
    return mb.transpose(x=y, perm=[0, 2, 3, 1])


@lowers("PictureUpsample")
def picture_upsample(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[B, C, H, W] -> [B, C, s H, s W]."""
    return _upsampled(x, node.outputs[0].shape[2:], node.inputs[0].shape[2:])


def _upsampled(x: Var, to: tuple[int, ...], size: tuple[int, ...]) -> Var:
    height, width = (np.float32(a / b) for a, b in zip(to, size, strict=True))
    return mb.upsample_nearest_neighbor(x=x, scale_factor_height=height, scale_factor_width=width)
