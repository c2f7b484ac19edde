"""Weights of torch's layout in MLX's, and back.

torch keeps a 2-D convolution as [out, in, height, width], MLX as [out, height, width, in]; all else
is the same. `macai.diffusion.loading.sources` knows the names.
"""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np


def to_mlx(weights: Mapping[str, mx.array | np.ndarray]) -> dict[str, mx.array]:
    """Return torch's `weights` in MLX's layout, by the same names; arrays of MLX stay lazy."""
    arrays = {name: mx.array(array) for name, array in weights.items()}
    return {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in arrays.items()}


def to_torch(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return a model's parameters (flat, not quantised) in torch's layout, by the same names."""
    return {n: a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for n, a in weights.items()}
