"""The operations, a family a module; importing this fills the table."""

from macai.mil.ops import (
    activation,
    binary,
    compression,
    control,
    convolution,
    detection,
    image,
    linear,
    normalization,
    pool,
    recurrent,
    reduction,
    scatter_gather,
    shape,
    slicing,
    state,
    tensor,
    transformer,
    unary,
)
from macai.mil.registry import OPS as OPS

__all__ = ["OPS"]
_FAMILIES = (
    activation, binary, compression, control, convolution, detection, image, linear, normalization,
    pool, recurrent, reduction, scatter_gather, shape, slicing, state, tensor, transformer, unary,
)  # fmt: skip
