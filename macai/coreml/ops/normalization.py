"""Norms. A mean of squares overflows float16 on real models, so each is computed in float32."""

from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


@lowers("RMSNorm")
def rms_norm(lowering: "Lowering", node: Node, x: Var, weight: Var | None = None) -> Var:
    """[..., D] over its last axis, [D] weight.

    SmolLM2's activations reach 25,000: their squares are far beyond float16's 65,504.
    """
    kind = lowering.mil_type(node.outputs[0])
    wide = lowering.cast(x, "fp32")
    mean = mb.reduce_mean(x=mb.square(x=wide), axes=[-1], keep_dims=True)
    scale = mb.rsqrt(x=mean, epsilon=np.float32(node.options["eps"]))
    normal = lowering.cast(mb.mul(x=wide, y=scale), kind)
    return normal if weight is None else mb.mul(x=normal, y=weight)


@lowers("LayerNorm")
def layer_norm(lowering: "Lowering", node: Node, x: Var, *affine: Var) -> Var:
    """[..., D] over its last axis, [D] weight and bias."""
    kind = lowering.mil_type(node.outputs[0])
    wide = lowering.cast(x, "fp32")
    normal = mb.layer_norm(x=wide, axes=[-1], epsilon=np.float32(node.options["eps"]))
    result = lowering.cast(normal, kind)
    named = dict(zip(node.operands(), (x, *affine), strict=True))
    if "weight" in named:
        result = mb.mul(x=result, y=named["weight"])
    return mb.add(x=result, y=named["bias"]) if "bias" in named else result


def _last_groups(node: Node) -> str | None:
    """With `pytorch_compatible`."""
    return None if node.options["pytorch_compatible"] else "groups taken the MLX way"


@lowers("GroupNorm", accepts=_last_groups)
def group_norm(lowering: "Lowering", node: Node, x: Var, *affine: Var) -> Var:
    """[B, ..., C], channels in groups that lie together, as PyTorch's and diffusers' do."""
    kind = lowering.mil_type(node.outputs[0])
    shape, groups = node.inputs[0].shape, node.options["num_groups"]
    middle = int(np.prod(shape[1:-1]))
    wide = lowering.cast(x, "fp32")
    wide = mb.reshape(x=wide, shape=[shape[0], middle, groups, shape[-1] // groups])
    mean = mb.reduce_mean(x=wide, axes=[1, 3], keep_dims=True)
    centred = mb.sub(x=wide, y=mean)
    variance = mb.reduce_mean(x=mb.square(x=centred), axes=[1, 3], keep_dims=True)
    scale = mb.rsqrt(x=variance, epsilon=np.float32(node.options["eps"]))
    result = lowering.cast(mb.reshape(x=mb.mul(x=centred, y=scale), shape=shape), kind)
    named = dict(zip(node.operands(), (x, *affine), strict=True))
    if "weight" in named:
        result = mb.mul(x=result, y=named["weight"])
    return mb.add(x=result, y=named["bias"]) if "bias" in named else result
