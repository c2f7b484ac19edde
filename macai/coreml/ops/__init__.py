"""How each MLX primitive becomes MIL operations: one function a primitive, one module a family."""

from macai.coreml.ops import (
    attention,
    channels,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pictures,
    quantized,
    reduction,
    rope,
    shaping,
    sizes,
)
from macai.coreml.ops.table import OPS, Entry, Lower, Var, lowers

__all__ = ["OPS", "Entry", "Lower", "Var", "lowers"]
FAMILIES = (
    elementwise,
    linear,
    quantized,
    normalization,
    rope,
    attention,
    channels,
    convolution,
    pictures,
    reduction,
    indexing,
    shaping,
    sizes,
)
