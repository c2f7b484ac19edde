"""How each MLX primitive becomes MIL operations: one function a primitive, one module a family."""

from macai.coreml.ops import (
    attention,
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
    convolution,
    pictures,
    reduction,
    indexing,
    shaping,
)
