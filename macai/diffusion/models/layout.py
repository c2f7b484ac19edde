"""Weights of torch's layout in MLX's, and back.

torch keeps a 2-D convolution as [out, in, height, width], MLX as [out, height, width, in]; all else
is the same. Parameters have the same names on both sides.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.models.arrays import named_arrays

# What diffusers called the VAE's attention layers before its version 0.17.
_LEGACY_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def to_mlx(weights: Mapping[str, mx.array | np.ndarray], model: nn.Module) -> dict[str, mx.array]:
    """Return torch's `weights` under the names and in the layout of `model`'s parameters.

    A projection that is a linear layer on one side and a 1x1 convolution on the other becomes what
    the model has. A name the model does not know is returned as it came, and no shape is checked:
    whoever loads reports both.

    Args:
        weights: By diffusers' names; arrays of MLX stay lazy.
        model: A model of this package, not quantised.
    """
    parameters = named_arrays(model.parameters())
    return {
        name: _as_parameter(array, parameters.get(name))
        for name, array in ((_current_name(n, parameters), a) for n, a in weights.items())
    }


def to_torch(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return a model's parameters (flat, not quantised) in torch's layout, by the same names."""
    return {n: a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for n, a in weights.items()}


def _current_name(name: str, parameters: Mapping[str, mx.array]) -> str:
    if name in parameters:
        return name
    module, _, kind = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    current = f"{parent}.{_LEGACY_ATTENTION.get(last, last)}.{kind}"
    return current if current in parameters else name


def _as_parameter(array: mx.array | np.ndarray, parameter: mx.array | None) -> mx.array:
    if parameter is None:
        return mx.array(array)
    if array.ndim == 4 and parameter.ndim == 2 and array.shape[2:] == (1, 1):
        array = array.reshape(array.shape[:2])
    elif array.ndim == 2 and parameter.ndim == 4:
        array = array.reshape(array.shape[0], 1, 1, array.shape[1])
    elif array.ndim == 4:
        array = array.transpose(0, 2, 3, 1)
    return mx.array(array)
