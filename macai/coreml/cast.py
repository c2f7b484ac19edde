"""All weights of a model in one type, checked."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from macai.coreml.lower import all_finite
from macai.errors import ExportError
from macai.models.arrays import named_arrays

DTYPE_NAMES = {mx.int32: "int32", mx.float16: "fp16", mx.float32: "fp32"}


def cast_weights(model: nn.Module, dtype: mx.Dtype) -> None:
    """Cast all floats to `dtype`, one by one, in place.

    Raises:
        ExportError: a weight is not finite in `dtype`.
    """
    unsettled = named_arrays(model.parameters())
    for path in list(unsettled):
        value = unsettled.pop(path)
        if mx.issubdtype(value.dtype, mx.floating):
            value = value.astype(dtype)
        mx.eval(value)
        if value.dtype == dtype and not all_finite(np.array(value, copy=False)):
            raise ExportError(
                f"{path} is not finite in {DTYPE_NAMES[dtype]}",
                hint="export with --precision fp32",
            )
        # One by one, and nothing else knows what it was made from: that is freed.
        model.update(tree_unflatten([(path, value)]), strict=False)
